"""A COCO annotation file read once into arrays, its faulty entries counted by kind."""

import json
import math
import mmap
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_xai.data.coco_outlines import usable_outline

# A label is an output of the classifier; an id beyond this is a mistake, not a class.
LARGEST_CATEGORY_ID = 100_000


@dataclass
class CocoAnnotations:
    """Images sorted by id, and their boxes grouped by image: those of image i are rows first[i] to first[i + 1].

    `shapes` (N, 2) is (height, width) as the file says, 0 where it does not; `boxes` (A, 4) float32 is (x, y, width,
    height) in pixels. `faults` maps what was wrong to (how often, the first example).
    """

    file: str
    categories: dict[int, str]
    image_ids: np.ndarray
    file_names: np.ndarray
    shapes: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    outlines: list | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def of_image(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes (n, 4) xywh, labels (n,), area (n,) and iscrowd (n,) of one image."""
        rows = slice(self.first[index], self.first[index + 1])
        columns = (self.boxes, self.labels, self.area, self.iscrowd)
        boxes, labels, area, iscrowd = (torch.from_numpy(column[rows].copy()) for column in columns)
        return boxes, labels, area, iscrowd

    def outlines_of_image(self, index: int) -> list:
        """Outlines of one image's objects, in the order of `of_image`."""
        return self.outlines[self.first[index] : self.first[index + 1]]

    def trainable(self) -> np.ndarray:
        """(A,) bool: neither a crowd nor without area inside its image."""
        height, width = np.where(self.shapes == 0, np.inf, self.shapes)[self._image_of_box()].T
        x, y, w, h = self.boxes.T
        inside = (np.minimum(x + w, width) > np.maximum(x, 0)) & (np.minimum(y + h, height) > np.maximum(y, 0))
        return inside & (self.iscrowd == 0)

    def without_images(self, missing: np.ndarray) -> "CocoAnnotations":
        """The same but for the images where `missing` (N,) is True."""
        keep_box = ~missing[self._image_of_box()]
        counts = np.diff(self.first)[~missing]
        return CocoAnnotations(
            self.file, self.categories, self.image_ids[~missing], self.file_names[~missing], self.shapes[~missing],
            np.concatenate([[0], counts.cumsum()]), self.boxes[keep_box], self.labels[keep_box], self.area[keep_box],
            self.iscrowd[keep_box], self.faults,
            self.outlines and [self.outlines[i] for i in np.flatnonzero(keep_box)],
        )  # fmt: skip

    def _image_of_box(self) -> np.ndarray:
        return np.repeat(np.arange(len(self)), np.diff(self.first))

    def summary(self) -> str:
        """One line: how much there is and what is wrong with it."""
        crowds = int(self.iscrowd.sum())
        empty = int((np.diff(self.first) == 0).sum())
        words = [
            f"{self.file}: {len(self)} images ({empty} without objects), {len(self.boxes)} boxes ({crowds} crowds)"
        ]
        words += [f"{count} {what} (first: {example})" for what, (count, example) in self.faults.items()]
        return "; ".join(words) + "."


def read_annotations(file: str | os.PathLike, outlines: bool = False) -> CocoAnnotations:
    """Read images, categories and boxes, and with `outlines` those of the objects.

    Left out, and counted in `faults`: boxes of an unknown category or image, and boxes that are not four finite
    numbers or have a negative side; where outlines are asked for also objects without a usable one. Counted only: boxes
    without area and boxes that reach beyond their image (the target of each image is clipped later; an evaluation takes
    them as they are, as pycocotools does).

    Raises: FileNotFoundError, or ValueError that names the entry where the file is no COCO instance file, has no
    images or no categories, or where an image's or category's own entry is wrong.
    """
    content = _load(file, outlines)
    categories = _read_categories(file, content.get("categories"))
    images = content.get("images")
    if not isinstance(images, list) or not images:
        raise ValueError(f'{file}: "images" should be a list of at least one image.')
    image_ids, file_names, shapes = _read_images(file, images)
    rows = {image_id: row for row, image_id in enumerate(image_ids.tolist())}
    annotations = content.get("annotations", [])
    if not isinstance(annotations, list):
        raise ValueError(f'{file}: "annotations" should be a list, not {type(annotations).__name__}.')

    faults: dict[str, tuple[int, str]] = {}

    def fault(what: str, entry: Any) -> None:
        count, example = faults.get(what, (0, ""))
        faults[what] = (count + 1, example or _short(entry))

    images_of_boxes, boxes, labels, areas, crowds, drawn = [], [], [], [], [], []
    for entry in annotations:
        checked = _read_box(entry, rows, categories, fault)
        if checked is not None and outlines:
            drawn.append(usable_outline(entry.get("segmentation")))
            if drawn[-1] is None:
                drawn.pop()
                fault("objects without a usable outline left out", entry)
                continue
        if checked is not None:
            row, label, box, area, crowd = checked
            images_of_boxes.append(row)
            labels.append(label)
            boxes.append(box)
            areas.append(area)
            crowds.append(crowd)

    row_of_box = np.asarray(images_of_boxes, dtype=np.int64)
    order = np.argsort(row_of_box, kind="stable")
    result = CocoAnnotations(
        str(file), categories, image_ids, file_names, shapes,
        np.searchsorted(row_of_box[order], np.arange(len(image_ids) + 1)),
        np.asarray(boxes, dtype=np.float32).reshape(-1, 4)[order], np.asarray(labels, dtype=np.int64)[order],
        np.asarray(areas, dtype=np.float32)[order], np.asarray(crowds, dtype=np.int64)[order], faults,
        [drawn[i] for i in order] if outlines else None,
    )  # fmt: skip
    _count_boxes_beyond_their_image(result)
    return result


def read_categories(file: str | os.PathLike) -> dict[int, str]:
    """Names by id, found in the file without reading the rest of it where possible: COCO's is half a gigabyte."""
    if os.path.isfile(file) and os.path.getsize(file):
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for match in re.finditer(rb'"categories"\s*:\s*(?=\[)', content):
                text = content[match.end() : match.end() + 1_000_000].decode("utf-8", errors="replace")
                try:
                    return _read_categories(file, json.JSONDecoder().raw_decode(text)[0])
                except ValueError:
                    continue  # some other list of that name, or one too long for the window
    return _read_categories(file, _load(file).get("categories"))


def unannotated(files: list[Path]) -> CocoAnnotations:
    """Pictures without an annotation file; an image's id is its position in the list."""
    n, none = len(files), np.zeros(0, dtype=np.int64)
    return CocoAnnotations(
        "pictures", {}, np.arange(n), np.array([str(file) for file in files]), np.zeros((n, 2), dtype=np.int64),
        np.zeros(n + 1, dtype=np.int64), np.zeros((0, 4), dtype=np.float32), none, none.astype(np.float32), none,
    )  # fmt: skip


def _load(file: str | os.PathLike, outlines: bool = False) -> dict:
    def without_outline(entry: dict) -> dict:
        # Outlines are nine tenths of the file and rarely used; dropped at once, they never fill the memory.
        entry.pop("segmentation", None)
        return entry

    try:
        with open(file, encoding="utf-8") as stream:
            content = json.load(stream, object_hook=None if outlines else without_outline)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: no such annotation file; give a COCO instances_*.json.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: no valid JSON at line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: no valid UTF-8 at byte {error.start}; is it a compressed file?") from error
    if not isinstance(content, dict):
        raise ValueError(f'{file}: should be an object with "images", "annotations", "categories", not a list.')
    return content


def _read_categories(file: str | os.PathLike, entries: Any) -> dict[int, str]:
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{file}: "categories" should be a list of at least one category.')
    categories: dict[int, str] = {}
    for i, entry in enumerate(entries):
        number = entry.get("id") if isinstance(entry, dict) else None
        if type(number) is not int or not 0 <= number <= LARGEST_CATEGORY_ID:
            raise ValueError(
                f'{file}: categories[{i}] = {_short(entry)} should have an integer "id", 0 to {LARGEST_CATEGORY_ID}.'
            )
        name = str(entry.get("name", number))
        if categories.setdefault(number, name) != name:
            raise ValueError(f"{file}: category id {number} is both {categories[number]!r} and {name!r}.")
    return categories


def _read_images(file: str | os.PathLike, entries: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids, names, shapes = [], [], []
    for i, entry in enumerate(entries):
        if (
            not isinstance(entry, dict)
            or type(entry.get("id")) is not int
            or not isinstance(entry.get("file_name"), str)
        ):
            raise ValueError(f'{file}: images[{i}] = {_short(entry)} should have an integer "id" and a "file_name".')
        height, width = entry.get("height", 0), entry.get("width", 0)
        ids.append(entry["id"])
        names.append(entry["file_name"])
        shapes.append((height, width) if type(height) is type(width) is int and min(height, width) > 0 else (0, 0))
    order = np.argsort(ids, kind="stable")
    sorted_ids = np.asarray(ids, dtype=np.int64)[order]
    twice = np.flatnonzero(sorted_ids[1:] == sorted_ids[:-1])
    if len(twice):
        first, second = order[twice[0]], order[twice[0] + 1]
        raise ValueError(f"{file}: images[{first}] and images[{second}] have the same id {ids[first]}.")
    return sorted_ids, np.array(names)[order], np.asarray(shapes, dtype=np.int64)[order]


def _read_box(entry: Any, rows: dict[int, int], categories: dict[int, str], fault: Callable[[str, Any], None]):
    """(row of the image, label, box, area, crowd) of one annotation, or None after reporting what is wrong with it."""
    if not isinstance(entry, dict):
        return fault("annotations that are no object", entry)
    image_id, label = entry.get("image_id"), entry.get("category_id")
    if type(image_id) is not int or image_id not in rows:
        return fault("boxes of an unknown image id left out", entry)
    if type(label) is not int or label not in categories:
        return fault("boxes of an unknown category id left out", entry)
    try:
        x, y, w, h = (float(number) for number in entry.get("bbox"))
    except (TypeError, ValueError):
        return fault("boxes that are not four numbers left out", entry)
    if not math.isfinite(x + y + w + h):
        return fault("boxes with NaN or infinity left out", entry)
    if w < 0 or h < 0:
        return fault("boxes with a negative side left out", entry)
    area = entry.get("area")
    if type(area) not in (int, float) or not (math.isfinite(area) and area >= 0):
        if area is not None:
            fault("areas that are no number replaced by the box's", entry)
        area = w * h
    return rows[image_id], label, (x, y, w, h), area, int(bool(entry.get("iscrowd", 0)))


def _count_boxes_beyond_their_image(annotations: CocoAnnotations) -> None:
    image = annotations._image_of_box()
    height, width = np.where(annotations.shapes == 0, np.inf, annotations.shapes)[image].T
    x, y, w, h = annotations.boxes.T
    empty = ~annotations.trainable() & (annotations.iscrowd == 0)
    # Half a pixel beyond the border is rounding, which nearly every set has.
    beyond = (
        ~empty
        & (annotations.iscrowd == 0)
        & ((np.minimum(x, y) < -0.5) | (x + w > width + 0.5) | (y + h > height + 0.5))
    )
    for what, rows in (
        ("boxes without area inside their image not trained on", empty),
        ("boxes clipped to their image", beyond),
    ):
        if rows.any():
            i = int(np.flatnonzero(rows)[0])
            name, box = annotations.file_names[image[i]], [round(float(number), 2) for number in annotations.boxes[i]]
            annotations.faults[what] = (int(rows.sum()), f"{box} in {name}")


def _short(entry: Any) -> str:
    text = json.dumps(entry, ensure_ascii=False, default=str)
    return text if len(text) <= 160 else text[:157] + "..."
