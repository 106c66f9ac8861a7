"""The abstract scene graph of a caption: objects, their attributes and relations as numbered nodes with edges."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

OBJECT, ATTRIBUTE, RELATION = range(3)
NODE_TYPES = ("object", "attribute", "relation")
# Types of edges that messages pass along, from source to target.
EDGE_TYPES = (
    "object to attribute",
    "attribute to object",
    "subject to relation",
    "relation to subject",
    "relation to object",
    "object to relation",
)
MAX_NODES = 10
# An attribute's place among those of its object is a row of a table of 20, whose first is for no place.
MAX_ATTRIBUTES = 19

Box = tuple[float, float, float, float]


class GraphObject(NamedTuple):
    """An object: `identity` is what relations call it, `box` is xyxy in pixels; names are for people only."""

    identity: int | str
    name: str
    attributes: tuple[str, ...]
    box: Box


class GraphRelation(NamedTuple):
    """A relation from the object of identity `subject` to the one of identity `object`."""

    subject: int | str
    name: str
    object: int | str


@dataclass(frozen=True)
class AbstractGraph:
    """What a caption shall speak of, in the order in which it is listed; `phrase` is that caption where it is known.

    Raises ValueError for a graph without objects, and for a relation to an object that is not there.
    """

    objects: tuple[GraphObject, ...]
    relations: tuple[GraphRelation, ...] = ()
    phrase: str = ""

    def __post_init__(self) -> None:
        if not self.objects:
            raise ValueError("the graph has no object; a caption needs at least one to speak of.")
        known = {item.identity for item in self.objects}
        for relation in self.relations:
            for end in (relation.subject, relation.object):
                if end not in known:
                    raise ValueError(
                        f"the relation {relation.name!r} is to object {end!r}, but the graph's objects are "
                        f"{', '.join(map(repr, sorted(known, key=repr)))}."
                    )

    def counts(self) -> tuple[int, int, int]:
        """How many objects, attributes and relations it has."""
        return len(self.objects), sum(len(item.attributes) for item in self.objects), len(self.relations)


class GraphNodes:
    """A graph's N nodes in the captioner's order.

    types: of NODE_TYPES; orders: an attribute's place among its object's (1, 2, ...), 0 of other nodes; boxes: xyxy of
    the object, of an attribute's object, or around both ends of a relation; owners: the node that an attribute belongs
    to, -1 of other nodes; edges: (source, target, type of EDGE_TYPES); left_out: how many nodes did not fit.
    """

    # No dataclass: Lightning takes those in a batch apart, number by number, to move them to a device.
    def __init__(
        self,
        names: tuple[str, ...],
        types: tuple[int, ...],
        orders: tuple[int, ...],
        boxes: tuple[Box, ...],
        owners: tuple[int, ...],
        edges: tuple[tuple[int, int, int], ...],
        left_out: int = 0,
    ):
        self.names, self.types, self.orders, self.boxes = names, types, orders, boxes
        self.owners, self.edges, self.left_out = owners, edges, left_out

    def __len__(self) -> int:
        return len(self.types)

    def relation_matrices(self) -> np.ndarray:
        """(6, N, N) float32 [type, target, source]: 1 over the number of edges of this type into the target."""
        matrices = np.zeros((len(EDGE_TYPES), len(self), len(self)), np.float32)
        entering = Counter((target, kind) for _, target, kind in self.edges)
        for source, target, kind in self.edges:
            matrices[kind, target, source] = 1 / entering[target, kind]
        return matrices

    def flow_matrix(self) -> np.ndarray:
        """(N, N) float32 [target, source], columns sum to 1: where a speaker goes from a node.

        From a subject over the relation to its object, and between an object and its attributes both ways; where no
        step leads on, attention stays.
        """
        onward = [(source, target) for source, target, kind in self.edges if kind in (0, 1, 2, 4)]
        leaving = Counter(source for source, _ in onward)
        onward += [(node, node) for node in range(len(self)) if node not in leaving]
        matrix = np.zeros((len(self), len(self)), np.float32)
        for source, target in onward:
            matrix[target, source] = 1 / max(leaving[source], 1)
        return matrix


def around(first: Box, second: Box) -> Box:
    """The smallest box that holds both."""
    return (
        min(first[0], second[0]),
        min(first[1], second[1]),
        max(first[2], second[2]),
        max(first[3], second[3]),
    )


def graph_nodes(graph: AbstractGraph, max_nodes: int = MAX_NODES) -> GraphNodes:
    """Number the graph's nodes: each object followed by its attributes, then the relations, the first `max_nodes`.

    Of objects with the same identity, relations mean the last. Raises ValueError for an attribute numbered 20 or more,
    which the captioner has no place for, and for a limit below 1.
    Source: the readers of asg2cap (Chen et al., "Say As You Wish", 2020).
    """
    if max_nodes < 1:
        raise ValueError(f"max_nodes={max_nodes} leaves no node; the published captioner takes {MAX_NODES}.")
    planned: list[tuple[str, int, int, Box, int]] = []
    edges: list[tuple[int, int, int]] = []
    node_of: dict[int, int] = {}
    box_of: dict[int, Box] = {}
    for item in graph.objects:
        owner = node_of[item.identity] = len(planned)
        box_of[item.identity] = item.box
        planned.append((item.name, OBJECT, 0, item.box, -1))
        for order, attribute in enumerate(item.attributes, 1):
            node = len(planned)
            planned.append((attribute, ATTRIBUTE, order, item.box, owner))
            edges += [(owner, node, 0), (node, owner, 1)]
    for relation in graph.relations:
        node, subject, other = len(planned), node_of[relation.subject], node_of[relation.object]
        box = around(box_of[relation.subject], box_of[relation.object])
        planned.append((relation.name, RELATION, 0, box, -1))
        edges += [(subject, node, 2), (node, subject, 3), (node, other, 4), (other, node, 5)]
    kept = planned[:max_nodes]
    names, types, orders, boxes, owners = zip(*kept, strict=True)
    if max(orders) > MAX_ATTRIBUTES:
        crowded = names[owners[orders.index(MAX_ATTRIBUTES + 1)]]
        raise ValueError(
            f"object {crowded!r} has {max(orders)} attributes among the first {max_nodes} nodes; at most "
            f"{MAX_ATTRIBUTES} of one object can be told apart, so leave some out or lower max_nodes."
        )
    inside = tuple(edge for edge in edges if edge[0] < len(kept) and edge[1] < len(kept))
    return GraphNodes(names, types, orders, boxes, owners, inside, len(planned) - len(kept))
