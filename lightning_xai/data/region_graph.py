"""An abstract scene graph of regions that somebody pointed at: what shall be said of each, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_xai.data.abstract_graph import AbstractGraph, Box, GraphObject, GraphRelation

POSITIONS = ("inside", "around", "left of", "right of", "above", "below")


def region_graph(
    names: Sequence[str], boxes: Sequence[Box], attributes: Sequence[int], relations: int, size: tuple[int, int]
) -> AbstractGraph:
    """The graph of N regions in their order, numbered from 0.

    names, boxes: of the regions, xyxy in pixels of a picture of `size` (h, w). attributes: how many are asked for of
    each region. relations: how many are asked for: of the first region to the second, of the second to the third and
    so on, each called by `position`. Raises ValueError for relations that there are no regions for.
    """
    if not 0 <= relations <= max(len(names) - 1, 0):
        raise ValueError(
            f"{relations} relations between {len(names)} regions: each is of a region to the next, so "
            f"{max(len(names) - 1, 0)} is the most"
        )
    objects = [
        GraphObject(number, name, tuple(f"attribute {place + 1}" for place in range(asked)), box)
        for number, (name, box, asked) in enumerate(zip(names, boxes, attributes, strict=True))
    ]
    related = [
        GraphRelation(number, position(boxes[number], boxes[number + 1], size), number + 1)
        for number in range(relations)
    ]
    return AbstractGraph(tuple(objects), tuple(related))


def position(box: Box, other: Box, size: tuple[int, int]) -> str:
    """Where a box is, seen from another, one of POSITIONS.

    Inside or around it; else along the axis on which their centres differ more, measured in the picture's sides.
    """
    if _holds(other, box) and not _holds(box, other):
        return "inside"
    if _holds(box, other) and not _holds(other, box):
        return "around"
    h, w = size
    across = (box[0] + box[2] - other[0] - other[2]) / w
    down = (box[1] + box[3] - other[1] - other[3]) / h
    if abs(across) > abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def _holds(outer: Box, inner: Box) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]
