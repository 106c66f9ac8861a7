"""New pictures with the graphs that were drawn on them: which belong together, and what is wrong with some."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_xai.data.abstract_graph import AbstractGraph, around
from lightning_xai.data.picture_file import UnreadablePicture, list_pictures
from lightning_xai.data.region_features import boxes_inside
from lightning_xai.data.scene_graph_files import parse_region, read_regions, region_file


@dataclass(frozen=True)
class GraphPicture:
    """A picture's file, its regions that are to be captioned, their phrases, and the boxes that they speak of.

    boxes: (R, 4) int64 xyxy as the graph's file and `graph_nodes` have them, each once; inclusive: whether they end at
    their last pixel, or behind it.
    """

    image_id: str
    file: Path
    regions: tuple[str, ...]
    phrases: tuple[str, ...]
    boxes: np.ndarray
    inclusive: bool

    def shown_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """These boxes with x2 and y2 behind the last pixel, (R, 4) float32."""
        return np.asarray(boxes, np.float32) + np.array([0, 0, 1, 1] if self.inclusive else [0, 0, 0, 0], np.float32)

    def check_boxes(self) -> None:
        """Raises UnreadablePicture, or ValueError for a box without area in the picture; only its header is read."""
        boxes_inside(self.shown_boxes(self.boxes), picture_size(self.file))


def image_id_of(name: str | os.PathLike) -> str:
    """A picture's id: its file name before the first dot."""
    return Path(name).name.split(".")[0]


def pictures_by_id(folder: str | os.PathLike) -> dict[str, Path]:
    """The pictures of a folder by their ids.

    Raises FileNotFoundError for a folder without a picture, ValueError where two have the same id.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the one with the pictures.")
    found: dict[str, Path] = {}
    for file in list_pictures(folder):
        other = found.setdefault(image_id_of(file), file)
        if other != file:
            raise ValueError(
                f"{other} and {file} both have the id {image_id_of(file)!r}, the file name before the first dot; "
                "rename one."
            )
    return found


def graph_ids(folder: str | os.PathLike) -> list[str]:
    """The ids of images with a file of regions, in alphabetical order. Raises FileNotFoundError where there is none."""
    ids = sorted(file.stem for file in Path(folder).glob("*.json"))
    if not ids:
        raise FileNotFoundError(f"{folder}: no <image id>.json in this folder; it should hold the pictures' graphs.")
    return ids


def picture_size(file: Path) -> tuple[int, int]:
    """(h, w) from the picture's header. Raises UnreadablePicture."""
    try:
        with Image.open(file) as picture:
            return picture.height, picture.width
    except Exception as error:  # headers of damaged files raise whatever their format's code stumbles on
        raise UnreadablePicture(f"{file}: no picture of a known format.") from error


def graph_boxes(graphs: Iterable[AbstractGraph]) -> np.ndarray:
    """The boxes (R, 4) that nodes of these graphs have, see `graph_nodes`: of objects, and around both ends of each
    relation; each once, in the order in which they come."""
    boxes: dict[tuple[float, ...], None] = {}
    for graph in graphs:
        box_of = {item.identity: item.box for item in graph.objects}
        boxes.update((item.box, None) for item in graph.objects)
        boxes.update((around(box_of[relation.subject], box_of[relation.object]), None) for relation in graph.relations)
    return np.array(list(boxes), np.int64).reshape(-1, 4)


def graph_picture(
    image_id: str,
    graphs: str | os.PathLike,
    pictures: Mapping[str, Path],
    inclusive: bool,
    regions: Sequence[str] | None = None,
) -> tuple[GraphPicture | None, list[str]]:
    """The picture of an id with the regions in `<graphs>/<id>.json` (default: all of them), and what is wrong there.

    A region with a fault is left out, and so is a picture that has no other; a sentence says each fault.
    """
    file = region_file(graphs, image_id)
    if image_id not in pictures:
        return None, [f"{file}: there is no picture of image {image_id!r}"]
    try:
        described = read_regions(file)
    except (FileNotFoundError, ValueError) as error:
        return None, [str(error)]
    found: dict[str, AbstractGraph] = {}
    faults = []
    for region in described if regions is None else regions:
        try:
            if region not in described:
                raise ValueError("there is no such region")
            found[region] = parse_region(described[region], inclusive)
        except ValueError as error:
            faults.append(f"{file}, region {region!r}: {error}")
    if not found and (regions is None or regions):
        return None, faults or [f"{file}: it has no region"]
    boxes = graph_boxes(found.values())
    phrases = tuple(graph.phrase for graph in found.values())
    picture = GraphPicture(image_id, pictures[image_id], tuple(found), phrases, boxes, inclusive)
    return picture, faults
