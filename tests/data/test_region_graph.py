"""Graphs of chosen regions."""

import pytest

from lightning_xai.data.abstract_graph import GraphRelation, graph_nodes
from lightning_xai.data.region_graph import position, region_graph

BOXES = [(0, 0, 10, 10), (50, 2, 60, 12), (52, 80, 62, 90)]


def test_the_graph_has_what_was_asked_for():
    graph = region_graph(["dog", "cat", "mat"], BOXES, [2, 0, 1], 2, (100, 100))
    assert [(item.identity, item.name, item.attributes, item.box) for item in graph.objects] == [
        (0, "dog", ("attribute 1", "attribute 2"), BOXES[0]),
        (1, "cat", (), BOXES[1]),
        (2, "mat", ("attribute 1",), BOXES[2]),
    ]
    assert graph.relations == (GraphRelation(0, "left of", 1), GraphRelation(1, "above", 2))
    assert graph_nodes(graph).types == (0, 1, 1, 0, 0, 1, 2, 2)


@pytest.mark.parametrize(
    ("box", "other", "expected"),
    [
        ((0, 0, 10, 10), (20, 5, 30, 15), "left of"),
        ((20, 5, 30, 15), (0, 0, 10, 10), "right of"),
        ((0, 0, 10, 10), (5, 20, 15, 30), "above"),
        ((5, 20, 15, 30), (0, 0, 10, 10), "below"),
        ((2, 2, 5, 5), (0, 0, 10, 10), "inside"),
        ((0, 0, 10, 10), (2, 2, 5, 5), "around"),
        ((0, 0, 10, 10), (4, 3, 14, 13), "above"),  # 4 of 200 pixels across are less than 3 of 100 down
        ((0, 0, 10, 10), (0, 0, 10, 10), "below"),  # the same place: neither holds the other
    ],
)
def test_positions(box, other, expected):
    assert position(box, other, (100, 200)) == expected


def test_relations_need_regions():
    assert region_graph(["dog"], BOXES[:1], [0], 0, (100, 100)).relations == ()
    with pytest.raises(ValueError, match=r"3 relations between 3 regions.*2 is the most"):
        region_graph(["dog", "cat", "mat"], BOXES, [0, 0, 0], 3, (100, 100))
    with pytest.raises(ValueError, match="no object"):
        region_graph([], [], [], 0, (100, 100))
