import numpy as np

from lightning_xai.data.concepts import class_concepts
from lightning_xai.data.crowd_tasks import read_answers
from lightning_xai.data.embedded_annotator import attribution_answers, rationale_answers, relevance_ratings

OBJECT = np.zeros((12, 12), bool)
OBJECT[4:9, 4:9] = True
MARK = [0.0, 0.0, 3.0, 3.0]


def looking_at(rows, columns, other=0.0):
    relevance = np.full((12, 12), other)
    relevance[rows, columns] = 1.0
    return relevance


def concepts_of(relevance, cue="mark", mark=MARK):
    model = read_answers(attribution_answers("000001", "star", cue, relevance, OBJECT, mark))
    human = read_answers(rationale_answers("000001", "star"))
    assert not model.aside and not human.aside
    return class_concepts(model.answers, human.answers, {"000001": "star"})["star"]


def test_ratings_follow_the_relevance_a_pixel():
    left = np.zeros((2, 4), bool)
    left[:, :2] = True
    relevance = np.array([[4.0, 4.0, 1.0, 1.0], [4.0, 4.0, 1.0, -9.0]])
    # densities 4 and 3 / 4: 1 + 4 * 0.1875 = 1.75, to a half
    assert relevance_ratings(relevance, {"left": left, "right": ~left}) == {"left": 5.0, "right": 2.0}
    assert relevance_ratings(np.zeros((2, 4)), {"left": left, "none": np.zeros_like(left)}) == {
        "left": 1.0,
        "none": 1.0,
    }


def test_who_looks_at_the_mark_is_told_to_look_at_the_object():
    found = concepts_of(looking_at(slice(0, 3), slice(0, 3)))
    assert found.valid == {"five tips": 1.0} and found.confounded == {"letter in the corner": 1.0}


def test_what_all_pixels_have_alike_is_not_looked_at():
    assert concepts_of(looking_at(slice(0, 3), slice(0, 3)) + 100) == concepts_of(looking_at(slice(0, 3), slice(0, 3)))


def test_who_looks_at_the_object_is_told_nothing():
    found = concepts_of(looking_at(slice(4, 9), slice(4, 9)))
    assert not found.valid and not found.confounded


def test_a_background_cue_is_everything_beside_the_object():
    found = concepts_of(looking_at(slice(0, 12), slice(0, 3)), "background", None)
    assert found.valid == {"five tips": 1.0} and found.confounded == {"background pattern": 1.0}


def test_a_picture_without_a_mark_confounds_nobody():
    found = concepts_of(looking_at(slice(0, 3), slice(0, 3)), mark=None)
    assert not found.confounded
