"""Captions of a small world."""

import pytest

from lightning_xai.data.embedded_scene_graphs import EmbeddedSceneGraphsModule
from lightning_xai.evaluate.known_words import KnownWords

PARSE = KnownWords(["star", "heart"], ["red", "dotted"], ["to the left of", "above"])


@pytest.mark.parametrize(
    "caption, objects, attributes, relations",
    [
        ("a red dotted star to the left of a heart", ["star", "heart"], [("star", "red"), ("star", "dotted")],
         [("star", "to the left of", "heart")]),
        ("a red a heart", ["heart"], [], []),
        ("a red above a heart", ["heart"], [], []),
        ("red above heart", ["heart"], [], []),
        ("above a star and a dotted heart", ["star", "heart"], [("heart", "dotted")], []),
        ("a star above", ["star"], [], []),
        ("star star above heart", ["star", "star", "heart"], [], [("star", "above", "heart")]),
        ("the left of nothing", [], [], []),
        ("", [], [], []),
    ],
)  # fmt: skip
def test_words_are_what_the_lists_say(caption, objects, attributes, relations):
    assert PARSE(caption) == (tuple(objects), tuple(attributes), tuple(relations))


def test_case_does_not_matter():
    parse = KnownWords(["Star", "fire Hydrant"], ["RED"])
    assert parse("A Red star and a FIRE hydrant") == (("star", "fire hydrant"), (("star", "red"),), ())


def test_a_word_is_of_one_kind():
    with pytest.raises(ValueError, match="'red' cannot be object and attribute"):
        KnownWords(["red"], ["red"])


def test_the_embedded_world_is_read_as_it_was_meant():
    data = EmbeddedSceneGraphsModule(n_test=60)
    parse, graphs = KnownWords(**data.word_kinds), data.dataset("test")
    for index in range(60):
        graph = graphs.graph(index)
        assert parse(graph.phrase).counts() == graph.counts()
