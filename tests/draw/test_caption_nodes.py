"""The table of words and nodes."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lightning_xai.draw.caption_nodes import DrawnNode, draw_caption_nodes, node_colours

NODES = (
    DrawnNode("star", 0, (10, 10, 40, 40)),
    DrawnNode("red", 1, (10, 10, 40, 40), owner=0),
    DrawnNode("heart", 0, (50, 10, 90, 60)),
    DrawnNode("left of", 2, (10, 10, 90, 60)),
)
IMAGE = np.full((80, 100, 3), 128, np.uint8)


def draw(attention, gates=None, title="", memory=None) -> np.ndarray:
    return draw_caption_nodes(IMAGE, NODES, ("a", "star"), np.array(attention), gates, title, memory)


def test_attributes_have_the_colour_of_their_object():
    star, red, heart, relation = node_colours(NODES)
    assert star == red and len({star, heart, relation}) == 3
    assert node_colours([DrawnNode("red", 1, (0, 0, 1, 1))]) == [star]  # whose object did not fit into the graph


def test_a_word_is_coloured_by_the_node_it_attends_to_most():
    first, second = draw([[0.9, 0, 0.1, 0], [0.1, 0, 0.9, 0]]), draw([[0.9, 0, 0.1, 0], [0.9, 0, 0.1, 0]])
    assert first.dtype == np.uint8 and first.shape == second.shape
    changed = np.argwhere((first != second).any(-1))
    assert len(changed) and np.ptp(changed[:, 0]) < 24  # one line of the table
    for number, picture in ((2, first), (0, second)):
        colour = 255 * (0.55 * np.array(to_rgb(node_colours(NODES)[number])) + 0.45)
        row, column = changed[:, 0].min() + 2, changed[:, 1].min() + 1  # inside the word's field, above its letters
        np.testing.assert_allclose(picture[row, column], colour, atol=3)


def test_an_object_counts_with_its_attributes():
    one, two = draw([[0.3, 0.3, 0, 0.4], [1, 0, 0, 0]]), draw([[0.6, 0, 0, 0.4], [1, 0, 0, 0]])
    changed = np.argwhere((draw([[0, 0, 1, 0], [1, 0, 0, 0]]) != one).any(-1))
    row, column = changed[:, 0].min() + 2, changed[:, 1].min() + 1
    np.testing.assert_array_equal(one[row, column], two[row, column])  # the star's, though the relation has the most


def test_pictures_of_any_shape_have_room():
    square, wide, tall = (
        draw_caption_nodes(np.zeros((*shape, 3), np.uint8), NODES[:1], ("a",), np.ones((1, 1)))
        for shape in ((100, 100), (100, 300), (300, 100))
    )
    assert wide.shape[1] - square.shape[1] == pytest.approx(560 - 340, abs=1)
    assert square.shape[1] - tall.shape[1] == pytest.approx(340 - 160, abs=1)


def test_a_relation_as_large_as_the_picture_is_seen_on_all_sides():
    white = np.full((100, 100, 3), 255, np.uint8)
    nodes = (NODES[0], DrawnNode("left of", 2, (0, 0, 100, 100)))
    drawn = draw_caption_nodes(white, nodes, (), np.zeros((0, 2)))[14:354, 14:354].astype(int)
    edges = (drawn[:6], drawn[-6:], drawn[:, :6], drawn[:, -6:])
    assert all((edge.max(-1) < 128).mean() > 0.1 for edge in edges)


def test_gates_and_title_take_room():
    plain = draw([[1, 0, 0, 0]] * 2)
    gates = draw([[1, 0, 0, 0]] * 2, np.full((2, 4), 0.25))
    assert gates.shape[1] > plain.shape[1] and gates.shape[0] == plain.shape[0]
    assert draw([[1, 0, 0, 0]] * 2, title="a star\nasked for: a heart").shape[0] > plain.shape[0]
    long = draw([[1, 0, 0, 0]] * 2, title="a star that is long " * 20)
    assert long.shape[1] == plain.shape[1] and long.shape[0] > plain.shape[0] + 60  # in several lines
    tall = draw_caption_nodes(np.zeros((1000, 50, 3), np.uint8), NODES, ("a",), np.array([[1, 0, 0, 0]]))
    assert tall.shape[0] < 600 and tall.shape[1] < plain.shape[1]
    nothing = draw_caption_nodes(IMAGE, NODES, (), np.zeros((0, 4)))
    assert nothing.shape[1] == plain.shape[1]


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"attention of shape \(2, 3\): for 2 words and 4 nodes it must be \(2, 4\)"):
        draw(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"gates of shape \(1, 4\): for 2 words they must be \(2, 4\)"):
        draw([[1, 0, 0, 0]] * 2, np.ones((1, 4)))
    with pytest.raises(ValueError, match=r"memory of shape \(2, 1\): for 2 words they must be \(2,\)"):
        draw([[1, 0, 0, 0]] * 2, memory=np.ones((2, 1)))


def test_what_each_word_writes_into_the_memory_is_a_column():
    plain = draw([[1, 0, 0, 0]] * 2)
    little, much = (draw([[1, 0, 0, 0]] * 2, memory=np.array([0.5, share])) for share in (0.2, 0.9))
    assert plain.shape[1] < little.shape[1] < draw([[1, 0, 0, 0]] * 2, np.full((2, 4), 0.25)).shape[1]
    both = draw([[1, 0, 0, 0]] * 2, np.full((2, 4), 0.25), memory=np.array([0.5, 0.2]))
    assert both.shape[1] > draw([[1, 0, 0, 0]] * 2, np.full((2, 4), 0.25)).shape[1]
    changed = np.argwhere((little != much).any(-1))
    assert len(changed) and np.ptp(changed[:, 0]) < 24 and changed[:, 1].min() > plain.shape[1] - 30
