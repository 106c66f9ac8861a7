"""Relations between a scene's objects, computed from its geometry, and the scene graph that they make."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lightning_xai.data.scene import Scene, footprint

# A relation and the one that holds the other way round; "occludes" has no such partner.
INVERSES = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "larger than": "smaller than",
    "smaller than": "larger than",
    "same colour as": "same colour as",
}
RELATIONS = (*INVERSES, "occludes")

# Below these a person would hesitate, so nothing is claimed.
POSITION_MARGIN = 0.05  # of the canvas's width or height, between the centres
SIZE_RATIO = 1.25
OCCLUDED_SHARE = 0.05  # of the farther object's pixels


class Relation(NamedTuple):
    """`name` holds from the object numbered `subject` to the one numbered `object`."""

    subject: int
    name: str
    object: int


class Node(NamedTuple):
    """An object of a scene graph: its class and its attributes (colour, texture)."""

    category: str
    attributes: tuple[str, ...]


class SceneGraph(NamedTuple):
    """Nodes in the order of the scene's objects, and all relations between them."""

    nodes: tuple[Node, ...]
    relations: tuple[Relation, ...]


def occluded_share(scene: Scene, front: int, back: int) -> float:
    """Share of the object `back`'s pixels that lie under the object `front`: 0 where `back` is the nearer one."""
    nearer, farther = scene.objects[front], scene.objects[back]
    if front <= back or math.hypot(nearer.x - farther.x, nearer.y - farther.y) >= nearer.reach + farther.reach:
        return 0.0
    canvases = []
    for item in (nearer, farther):
        canvas = np.zeros((scene.height, scene.width), dtype=bool)
        place = footprint(item, scene.height, scene.width)
        canvas[place.rows, place.columns] = place.distance <= 0
        canvases.append(canvas)
    return float(np.count_nonzero(canvases[0] & canvases[1]) / max(np.count_nonzero(canvases[1]), 1))


def holds(scene: Scene, subject: int, name: str, other: int) -> bool:
    """Whether the relation `name` clearly holds from the object numbered `subject` to the one numbered `other`.

    Positions compare the centres, sizes the sides of the objects' upright frames.
    """
    if subject == other:
        return False
    a, b = scene.objects[subject], scene.objects[other]
    if name == "left of":
        return a.x + POSITION_MARGIN * scene.width < b.x
    if name == "above":
        return a.y + POSITION_MARGIN * scene.height < b.y
    if name == "larger than":
        return a.size > SIZE_RATIO * b.size
    if name in ("right of", "below", "smaller than"):
        return holds(scene, other, INVERSES[name], subject)
    if name == "same colour as":
        return a.colour == b.colour
    if name == "occludes":
        return occluded_share(scene, subject, other) >= OCCLUDED_SHARE
    raise ValueError(f"a relation is one of {', '.join(RELATIONS)}, but not {name!r}")


def relations(scene: Scene) -> tuple[Relation, ...]:
    """All relations that hold between two objects of `scene`, ordered by subject, name and object."""
    numbers = range(len(scene.objects))
    return tuple(
        Relation(subject, name, other)
        for subject in numbers
        for name in RELATIONS
        for other in numbers
        if holds(scene, subject, name, other)
    )


def scene_graph(scene: Scene) -> SceneGraph:
    """The scene as nodes with attributes and relations."""
    nodes = tuple(Node(item.shape, (item.colour, item.texture)) for item in scene.objects)
    return SceneGraph(nodes, relations(scene))
