"""Scene graphs and their captions in files of the published layout of asg2cap."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_xai.data.abstract_graph import AbstractGraph, Box, GraphObject, GraphRelation
from lightning_xai.data.plain_arrays import read_array

Sample = tuple[str, str]


def sample_name(image_id: str, region_id: str) -> str:
    """What a sample is called in predictions and references."""
    return f"{image_id}_{region_id}"


def read_samples(file: str | os.PathLike) -> list[Sample]:
    """(image id, region id) of each sample from `regionfiles/<split>_names.npy`.

    Raises FileNotFoundError, or ValueError for anything but an array of pairs.
    """
    pairs = read_array(file)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"{file}: an array of shape {pairs.shape}, but pairs (image id, region id) have shape (n, 2).")
    return [(_text(image), _text(region)) for image, region in pairs.tolist()]


def _text(entry: Any) -> str:
    return entry.decode("utf-8") if isinstance(entry, bytes) else str(entry)


def region_file(folder: str | os.PathLike, image_id: str) -> Path:
    return Path(folder) / f"{image_id}.json"


def read_region(folder: str | os.PathLike, image_id: str, region_id: str, inclusive: bool = True) -> AbstractGraph:
    """The graph and phrase of a region from `<folder>/<image id>.json`.

    inclusive: whether a box ends at its last pixel, x + w - 1 (MSCOCO), or behind it, x + w (Visual Genome).
    Raises FileNotFoundError, or ValueError that names file, region and entry.
    """
    path = region_file(folder, image_id)
    regions = read_regions(path)
    if region_id not in regions:
        raise ValueError(f"{path}: no region {region_id!r}; there are: {', '.join(map(repr, regions)) or 'none'}.")
    try:
        return parse_region(regions[region_id], inclusive)
    except ValueError as error:
        raise ValueError(f"{path}, region {region_id!r}: {error}") from error


def read_regions(path: Path) -> dict[str, Any]:
    """What an image's file holds, by region id; `parse_region` reads each. Raises FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; each image of the split needs one with its regions.")
    try:
        regions = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error}).") from error
    if not isinstance(regions, dict):
        raise ValueError(f"{path}: a {type(regions).__name__}, not an object with a graph for each region id.")
    return regions


def parse_region(region: Any, inclusive: bool = True) -> AbstractGraph:
    """The graph in a region's JSON. Raises ValueError that quotes the entry which is wrong."""
    if not isinstance(region, dict):
        raise ValueError(f"it is {_short(region)}, not an object with objects, relationships and phrase.")
    objects = [_object(entry, inclusive) for entry in _entries(region, "objects")]
    relations = [_relation(entry) for entry in _entries(region, "relationships")]
    phrase = region.get("phrase", "")
    if not isinstance(phrase, str):
        raise ValueError(f'"phrase" is {_short(phrase)}, not a string.')
    return AbstractGraph(tuple(objects), tuple(relations), phrase)


def _entries(region: dict, key: str) -> list:
    entries = region.get(key, [])
    if not isinstance(entries, list):
        raise ValueError(f'"{key}" is {_short(entries)}, not a list.')
    return entries


def _object(entry: Any, inclusive: bool) -> GraphObject:
    try:
        x, y, w, h = (_whole(entry[key]) for key in "xywh")
        attributes = entry.get("attributes") or []
        if not isinstance(attributes, list):
            raise TypeError("attributes must be a list")
        last = 1 if inclusive else 0
        box = (x, y, x + w - last, y + h - last)
        return GraphObject(_identity(entry["object_id"]), str(entry.get("name", "")), tuple(map(str, attributes)), box)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(
            f"{_short(entry)} is no object with object_id, name, attributes and whole numbers x, y, w, h "
            f"({type(error).__name__}: {error})."
        ) from error


def _relation(entry: Any) -> GraphRelation:
    try:
        subject, other = (_identity(entry[end]) for end in ("subject_id", "object_id"))
        return GraphRelation(subject, str(entry.get("name", "")), other)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{_short(entry)} is no relationship with subject_id, object_id and name ({type(error).__name__}: {error})."
        ) from error


def _identity(entry: Any) -> int | str:
    if isinstance(entry, bool) or not isinstance(entry, (int, str)):
        raise TypeError(f"an object is told by a number or a name, not by {entry!r}")
    return entry


def _whole(number: Any) -> int:
    if isinstance(number, bool) or int(number) != number:
        raise ValueError(f"{number!r} is no whole number")
    return int(number)


def _short(entry: Any) -> str:
    text = json.dumps(entry, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def region_json(graph: AbstractGraph, inclusive: bool = True) -> dict[str, Any]:
    """The graph as a region's JSON: `parse_region` reads it back."""
    return {
        "objects": [
            {
                "object_id": item.identity,
                "name": item.name,
                "attributes": list(item.attributes),
                **_xywh(item.box, inclusive),
            }
            for item in graph.objects
        ],
        "relationships": [
            {
                "relationship_id": number,
                "subject_id": relation.subject,
                "object_id": relation.object,
                "name": relation.name,
            }
            for number, relation in enumerate(graph.relations)
        ],
        "phrase": graph.phrase,
    }


def _xywh(box: Box, inclusive: bool) -> dict[str, int]:
    x1, y1, x2, y2 = (round(side) for side in box)
    last = 1 if inclusive else 0
    return {"x": x1, "y": y1, "w": x2 - x1 + last, "h": y2 - y1 + last}


def read_references(file: str | os.PathLike, samples: Sequence[Sample]) -> dict[str, list[str]]:
    """The reference of each sample by its name, from `cleaned_<split>_region_descriptions.json`.

    Raises FileNotFoundError, or ValueError for a file without one of the samples.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; leave references out to take each region's own phrase.")
    found: dict[str, list[str]] = {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for image_id, region_id in samples:
            region = content.get(image_id, {}).get(region_id)
            if region is None:
                raise ValueError(f"no phrase of image {image_id!r}, region {region_id!r}")
            found[sample_name(image_id, region_id)] = [str(region["phrase"])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: no references {{image id: {{region id: {{phrase}}}}}} of all {len(samples)} samples "
            f"({type(error).__name__}: {error})."
        ) from error
    return found
