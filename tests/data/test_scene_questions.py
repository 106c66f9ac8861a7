import re
from collections import Counter
from dataclasses import replace

import numpy as np

from lightning_xai.data.render_scene import render
from lightning_xai.data.scene import Background, Scene, SceneObject, SceneRecipe, sample_scene
from lightning_xai.data.scene_questions import (
    answer_vocabulary,
    attribute_questions,
    comparison_questions,
    count_questions,
    evidence_mask,
    existence_questions,
    questions,
    relation_questions,
)

RECIPE = SceneRecipe()
SAMPLED = [sample_scene(RECIPE, 4, "val", index) for index in range(60)]
HAND_MADE = Scene(
    100,
    100,
    Background("plain", (9, 9, 9), (9, 9, 9), 0.0, 20.0),
    (
        SceneObject("cross", "orange", "striped", 80.0, 50.0, 20.0, 0.0),
        SceneObject("star", "red", "solid", 20.0, 50.0, 20.0, 0.0),
        SceneObject("cross", "blue", "dotted", 50.0, 15.0, 26.0, 0.0),
    ),
    (),
    0.0,
    0,
)


def everything(scene):
    yield from existence_questions(scene, RECIPE)
    yield from count_questions(scene, RECIPE)
    yield from attribute_questions(scene)
    yield from relation_questions(scene)
    yield from comparison_questions(scene, RECIPE)


# An independent reader: it parses the English of a question and looks at the objects (and, for what is in front, at the
# drawn masks), knowing nothing of how the question was made.
def singular(noun):
    return {"crosses": "cross"}.get(noun, noun if noun == "cross" else noun.removesuffix("s"))


def meant(scene, phrase):
    words = {singular(word) for word in phrase.split()} - {"thing"}
    return tuple(n for n, item in enumerate(scene.objects) if words <= {item.colour, item.texture, item.shape})


def related(scene, a, words, b):
    """Whether what the words say is so, None if it is too close to call."""
    one, two = scene.objects[a], scene.objects[b]
    if words == "in front of":
        amodal = render(scene).amodal
        share = (amodal[a] & amodal[b]).sum() / amodal[b].sum() if a > b else 0.0
        return True if share >= 0.05 else (None if share > 0 else False)
    gain, margin = {
        "to the left of": (two.x - one.x, 0.05 * scene.width),
        "to the right of": (one.x - two.x, 0.05 * scene.width),
        "above": (two.y - one.y, 0.05 * scene.height),
        "below": (one.y - two.y, 0.05 * scene.height),
        "larger than": (np.log(one.size / two.size), np.log(1.25)),
        "smaller than": (np.log(two.size / one.size), np.log(1.25)),
    }[words]
    return None if abs(gain) <= margin else bool(gain > 0)


WORDS = r"(to the left of|to the right of|above|below|larger than|smaller than|in front of)"


def brute_force(scene, text):
    """Answer and evidence by reading `text`."""
    if match := re.fullmatch(r"is there an? (.*)\?", text):
        found = meant(scene, match[1])
        return ("yes" if found else "no"), found
    if match := re.fullmatch(r"how many (.*) are there\?", text):
        found = meant(scene, match[1])
        return str(len(found)), found
    if match := re.fullmatch(rf"what shape is {WORDS} the (.*)\?", text):
        (b,) = meant(scene, match[2])
        (a,) = (n for n in range(len(scene.objects)) if n != b and related(scene, n, match[1], b))
        return scene.objects[a].shape, (a, b)
    if match := re.fullmatch(r"what (colour|texture|shape) is the (.*)\?", text):
        (a,) = meant(scene, match[2])
        return getattr(scene.objects[a], match[1]), (a,)
    if match := re.fullmatch(rf"is the (.*) {WORDS} the (.*)\?", text):
        (a,), (b,) = meant(scene, match[1]), meant(scene, match[3])
        return {True: "yes", False: "no"}[related(scene, a, match[2], b)], (a, b)
    if match := re.fullmatch(r"are there more (.*) than (.*)\?", text):
        these, those = meant(scene, match[1]), meant(scene, match[2])
        return ("yes" if len(these) > len(those) else "no"), these + those
    match = re.fullmatch(r"do the (.*) and the (.*) have the same colour\?", text)
    (a,), (b,) = meant(scene, match[1]), meant(scene, match[2])
    return ("yes" if scene.objects[a].colour == scene.objects[b].colour else "no"), (a, b)


def test_answers_and_evidence_against_brute_force():
    kinds = Counter()
    for scene in SAMPLED[:25]:
        for question in everything(scene):
            assert (question.answer, question.evidence) == brute_force(scene, question.text), question
            kinds[question.kind] += 1
    assert set(kinds) == {"existence", "count", "attribute", "relation", "comparison"}


def test_known_answers_of_a_hand_made_scene():
    known = {question.text: (question.answer, question.evidence) for question in everything(HAND_MADE)}
    assert known["is there a blue cross?"] == ("yes", (2,))
    assert known["is there an orange star?"] == ("no", ())
    assert known["how many crosses are there?"] == ("2", (0, 2))
    assert known["how many things are there?"] == ("3", (0, 1, 2))
    assert known["what colour is the star?"] == ("red", (1,))
    assert known["what shape is the dotted thing?"] == ("cross", (2,))
    assert known["is the star to the left of the orange cross?"] == ("yes", (1, 0))
    assert known["what shape is to the right of the blue cross?"] == ("cross", (0, 2))
    assert known["is the blue cross larger than the star?"] == ("yes", (2, 1))
    assert known["are there more crosses than stars?"] == ("yes", (0, 2, 1))
    assert "what colour is the cross?" not in known  # there are two
    assert "is the star above the orange cross?" not in known  # they are level
    assert "what shape is to the right of the star?" not in known  # both crosses are
    assert "what shape is above the star?" not in known  # the blue cross is, but the orange one nearly so


def test_questions_are_different_and_always_the_same():
    for scene in SAMPLED:
        ours = questions(scene, RECIPE, per_kind=3)
        assert ours == questions(scene, RECIPE, per_kind=3)
        assert len({question.text for question in ours}) == len(ours)
        assert max(Counter(question.kind for question in ours).values()) == 3


def test_yes_and_no_are_about_as_frequent():
    answers = Counter(q.answer for scene in SAMPLED for q in questions(scene, RECIPE) if q.kind == "existence")
    assert set(answers) == {"yes", "no"}
    assert 0.35 < answers["yes"] / answers.total() < 0.65


def test_answers_come_from_the_vocabulary():
    assert {q.answer for scene in SAMPLED for q in everything(scene)} <= set(answer_vocabulary(RECIPE))


def test_evidence_mask_covers_the_deciding_objects_and_nothing_else():
    for scene in SAMPLED[:20]:
        owner = render(scene).owner
        for question in questions(scene, RECIPE):
            mask = evidence_mask(question, render(scene).visible)
            assert np.array_equal(mask, np.isin(owner, question.evidence))
            assert mask.any() == bool(question.evidence)


def test_objects_that_do_not_decide_can_go_without_changing_a_positive_answer():
    for scene in SAMPLED[:20]:
        for question in questions(scene, RECIPE):
            if question.kind in ("existence", "count", "attribute") and question.evidence:
                rest = replace(scene, objects=tuple(scene.objects[number] for number in question.evidence))
                assert brute_force(rest, question.text)[0] == question.answer
