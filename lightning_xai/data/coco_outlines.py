"""COCO's outlines of objects, polygons or run lengths, as masks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

FEWEST_NUMBERS = 6  # of a polygon: three corners


def usable_outline(entry: Any) -> list | dict | None:
    """An annotation's `segmentation` if a mask can be made of it: its polygons, or its run lengths; else None."""
    if isinstance(entry, list):
        polygons = [part for part in entry if _is_polygon(part)]
        return polygons or None
    if not isinstance(entry, dict):
        return None
    size, counts = entry.get("size"), entry.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        return None
    if isinstance(counts, str):
        return {"size": size, "counts": counts} if counts and counts.isascii() else None
    fits = (
        isinstance(counts, list) and all(type(c) is int and c >= 0 for c in counts) and sum(counts) == math.prod(size)
    )
    return {"size": size, "counts": counts} if fits else None


def _is_polygon(part: Any) -> bool:
    if not isinstance(part, list) or len(part) < FEWEST_NUMBERS or len(part) % 2:
        return False
    return all(type(number) in (int, float) and math.isfinite(number) for number in part)


def outline_masks(outlines: Sequence[list | dict], shape: tuple[int, int], what: str) -> Tensor:
    """Masks (N, h, w) bool of usable outlines in a picture of `shape` (h, w).

    ValueError, that names `what`: run lengths of a picture of another size, or that cannot be read.
    """
    from pycocotools import mask as run_lengths

    height, width = shape
    masks = np.zeros((len(outlines), height, width), dtype=np.uint8)
    for mask, outline in zip(masks, outlines, strict=True):
        if isinstance(outline, list):
            mask[:] = run_lengths.decode(run_lengths.merge(run_lengths.frPyObjects(outline, height, width)))
            continue
        if outline["size"] != [height, width]:
            raise ValueError(f"{what}: run lengths of size {outline['size']} in a picture of size {[height, width]}.")
        packed = isinstance(outline["counts"], list)
        codes = run_lengths.frPyObjects(outline, height, width) if packed else outline
        try:
            mask[:] = run_lengths.decode(codes)
        except ValueError as error:
            raise ValueError(f"{what}: run lengths {str(outline['counts'])[:60]!r} cannot be read: {error}.") from error
    return torch.from_numpy(masks).bool()
