import pytest

from lightning_xai.data.render_scene import render
from lightning_xai.data.scene import Background, Scene, SceneObject, SceneRecipe, sample_scene
from lightning_xai.data.scene_relations import (
    INVERSES,
    RELATIONS,
    Node,
    Relation,
    holds,
    occluded_share,
    relations,
    scene_graph,
)


def scene(*objects: SceneObject) -> Scene:
    return Scene(100, 100, Background("plain", (9, 9, 9), (9, 9, 9), 0.0, 20.0), objects, (), 0.0, 0)


STAR = SceneObject("star", "red", "solid", 20.0, 50.0, 20.0, 0.0)
RING = SceneObject("ring", "blue", "striped", 70.0, 20.0, 30.0, 0.0)
SQUARE = SceneObject("square", "red", "dotted", 72.0, 24.0, 29.0, 0.0)
HAND_MADE = scene(STAR, RING, SQUARE)
SAMPLED = [sample_scene(SceneRecipe(), 1, "val", index) for index in range(60)]


def test_known_relations_of_a_hand_made_scene():
    # The centres of ring and square are 2 and 4 pixels apart, less than the margin of 5; their sizes differ by 1 pixel.
    assert set(relations(HAND_MADE)) == {
        Relation(0, "left of", 1),
        Relation(0, "left of", 2),
        Relation(1, "right of", 0),
        Relation(2, "right of", 0),
        Relation(1, "above", 0),
        Relation(2, "above", 0),
        Relation(0, "below", 1),
        Relation(0, "below", 2),
        Relation(1, "larger than", 0),
        Relation(2, "larger than", 0),
        Relation(0, "smaller than", 1),
        Relation(0, "smaller than", 2),
        Relation(0, "same colour as", 2),
        Relation(2, "same colour as", 0),
        Relation(2, "occludes", 1),
    }


def test_scene_graph_of_a_hand_made_scene():
    graph = scene_graph(HAND_MADE)
    assert graph.nodes == (
        Node("star", ("red", "solid")),
        Node("ring", ("blue", "striped")),
        Node("square", ("red", "dotted")),
    )
    assert graph.relations == relations(HAND_MADE)


@pytest.mark.parametrize("name", RELATIONS)
def test_nothing_is_related_to_itself(name):
    assert not holds(HAND_MADE, 1, name, 1)


def test_inverses_hold_the_other_way_round():
    for one in SAMPLED:
        known = set(relations(one))
        for subject, name, other in known:
            if name in INVERSES:
                assert Relation(other, INVERSES[name], subject) in known
            else:
                assert Relation(other, name, subject) not in known


def test_occlusion_is_what_the_drawing_shows():
    for one in SAMPLED:
        amodal = render(one).amodal
        for front in range(len(amodal)):
            for back in range(front):
                share = (amodal[front] & amodal[back]).sum() / amodal[back].sum()
                assert occluded_share(one, front, back) == pytest.approx(share)
                assert occluded_share(one, back, front) == 0
                assert holds(one, front, "occludes", back) == (share >= 0.05)


def test_an_unknown_relation_is_refused():
    with pytest.raises(ValueError, match=r"a relation is one of left of, .*'inside'"):
        holds(HAND_MADE, 0, "inside", 1)
