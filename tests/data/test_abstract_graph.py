"""Nodes and edges of scene graphs, on graphs small enough to number by hand."""

import numpy as np
import pytest

from lightning_xai.data.abstract_graph import (
    ATTRIBUTE,
    OBJECT,
    RELATION,
    AbstractGraph,
    GraphObject,
    GraphRelation,
    graph_nodes,
)


def thing(identity: int, *attributes: str, box=(0, 0, 9, 9)) -> GraphObject:
    return GraphObject(identity, f"thing{identity}", attributes, box)


# Two attributes on the first of three objects, two relations into the third.
GRAPH = AbstractGraph(
    (thing(5, "old", "red", box=(10, 20, 14, 25)), thing(9, box=(40, 10, 47, 17)), thing(2, box=(0, 0, 3, 3))),
    (GraphRelation(5, "by", 2), GraphRelation(9, "on", 2)),
)


def test_nodes_are_numbered_object_by_object_then_relations():
    nodes = graph_nodes(GRAPH)
    assert nodes.names == ("thing5", "old", "red", "thing9", "thing2", "by", "on")
    assert nodes.types == (OBJECT, ATTRIBUTE, ATTRIBUTE, OBJECT, OBJECT, RELATION, RELATION)
    assert nodes.orders == (0, 1, 2, 0, 0, 0, 0) and nodes.owners == (-1, 0, 0, -1, -1, -1, -1)
    assert nodes.boxes[1] == (10, 20, 14, 25) and nodes.boxes[5] == (0, 0, 14, 25) and nodes.left_out == 0


def test_messages_from_every_kind_of_edge_are_averaged():
    matrices = graph_nodes(GRAPH).relation_matrices()
    expected = np.zeros((6, 7, 7), np.float32)
    expected[0, 1, 0] = expected[0, 2, 0] = 1  # the object to its attributes
    expected[1, 0, 1] = expected[1, 0, 2] = 0.5  # two attributes into one object
    expected[2, 5, 0] = expected[2, 6, 3] = expected[3, 0, 5] = expected[3, 3, 6] = 1
    expected[4, 4, 5] = expected[4, 4, 6] = 0.5  # two relations into one object
    expected[5, 5, 4] = expected[5, 6, 4] = 1
    np.testing.assert_array_equal(matrices, expected)


def test_attention_flows_from_subject_over_relation_to_object():
    flow = graph_nodes(GRAPH).flow_matrix()
    np.testing.assert_allclose(flow.sum(0), 1)
    np.testing.assert_allclose(flow[:, 0], [0, 1 / 3, 1 / 3, 0, 0, 1 / 3, 0], rtol=1e-6)
    assert flow[0, 1] == 1 and flow[4, 5] == 1 and flow[6, 3] == 1
    assert flow[4, 4] == 1  # nothing leads on from the last object


def test_a_node_without_edges_stays_where_it_is():
    nodes = graph_nodes(AbstractGraph((thing(0), thing(1))))
    np.testing.assert_array_equal(nodes.flow_matrix(), np.eye(2))
    assert not nodes.relation_matrices().any()


@pytest.mark.parametrize("limit, names", [(2, "thing5 old"), (6, "thing5 old red thing9 thing2 by")])
def test_the_first_nodes_are_kept(limit, names):
    nodes = graph_nodes(GRAPH, limit)
    assert " ".join(nodes.names) == names and nodes.left_out == 7 - limit
    assert all(source < limit and target < limit for source, target, _ in nodes.edges)
    np.testing.assert_allclose(nodes.flow_matrix().sum(0), 1, rtol=1e-6)


def test_twelve_nodes_where_ten_fit():
    nodes = graph_nodes(AbstractGraph(tuple(thing(number) for number in range(12))))
    assert len(nodes) == 10 and nodes.left_out == 2


def test_relations_mean_the_last_of_objects_with_one_identity():
    nodes = graph_nodes(AbstractGraph((thing(1), thing(1, box=(5, 5, 20, 20))), (GraphRelation(1, "is", 1),)))
    assert {edge[0] for edge in nodes.edges} == {1, 2} and nodes.boxes[2] == (5, 5, 20, 20)


def test_twenty_attributes_of_one_object():
    crowded = AbstractGraph((thing(0), thing(1, *[f"a{number}" for number in range(20)])))
    assert len(graph_nodes(crowded)) == 10
    assert graph_nodes(crowded, 21).orders[-1] == 19
    with pytest.raises(ValueError, match=r"'thing1' has 20 attributes .* at most 19"):
        graph_nodes(crowded, 22)


def test_graphs_that_are_none():
    with pytest.raises(ValueError, match="max_nodes=0 leaves no node"):
        graph_nodes(GRAPH, 0)
    with pytest.raises(ValueError, match="no object"):
        AbstractGraph(())
    with pytest.raises(ValueError, match="relation 'by' is to object 7, but the graph's objects are 3"):
        AbstractGraph((thing(3),), (GraphRelation(3, "by", 7),))


def test_counts():
    assert GRAPH.counts() == (3, 2, 2)
