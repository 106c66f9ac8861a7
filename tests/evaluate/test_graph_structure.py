"""The structure of captions: read by rules, compared by counts."""

import pytest

from lightning_xai.evaluate.graph_structure import RuleParser, structure_difference


@pytest.mark.parametrize(
    "caption, objects, attributes, relations",
    [
        ("A man riding a wave.", "man wave", "", "man/riding/wave"),
        ("a man riding a wave on top of a board", "man wave board", "", "man/riding/wave wave/on top of/board"),
        ("two dogs are playing with a red disc", "dogs disc", "dogs/two disc/red", "dogs/playing with/disc"),
        ("the dog is brown", "dog", "dog/brown", ""),
        ("a laughing woman, a cat and a dog", "woman cat dog", "woman/laughing", ""),
        ("a tall building", "building", "building/tall", ""),
        ("there is a red striped star to the left of an orange circle", "star circle",
         "star/red star/striped circle/orange", "star/to the left of/circle"),
        ("a picture of two stars and one circle", "stars circle", "stars/two circle/one", ""),
        ("we see a star of the same colour as a ring", "star ring", "", "star/of the same colour as/ring"),
        ("in front of a red car", "car", "car/red", ""),
        ("", "", "", ""),
    ],
)  # fmt: skip
def test_plain_captions_are_read(caption, objects, attributes, relations):
    def split(text: str) -> tuple:
        return tuple(tuple(part.split("/")) for part in text.replace("on top of", "on_top_of").split())

    found = RuleParser()(caption)
    assert found.objects == tuple(objects.split())
    assert found.attributes == split(attributes)
    assert [" ".join(relation) for relation in found.relations] == [
        part.replace("/", " ") for part in relations_of(relations)
    ]


def relations_of(text: str) -> list[str]:
    """Relations of several words are written between slashes: a blank within them is none between two."""
    parts: list[str] = []
    for piece in text.split(" "):
        if parts and parts[-1].count("/") < 2:
            parts[-1] += f" {piece}"
        elif piece:
            parts.append(piece)
    return parts


def test_relations_may_be_given():
    assert RuleParser(["eats"])("a dog eats a bone").relations == (("dog", "eats", "bone"),)


def test_differences_are_counted_kind_by_kind():
    scores = structure_difference((2, 1, 1), (3, 1, 3))
    assert scores == {"G": 1, "G_o": 1, "G_a": 0, "G_r": 2}
    parse = RuleParser()
    assert structure_difference(parse("a red dog").counts(), parse("a blue cat").counts())["G"] == 0
    on_a_mat = structure_difference(parse("a red dog").counts(), parse("a cat on a mat").counts())
    assert on_a_mat == {"G": 1, "G_o": 1, "G_a": 1, "G_r": 1}
