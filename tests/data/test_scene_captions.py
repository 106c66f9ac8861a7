import re

import pytest

from lightning_xai.data.scene import Background, Scene, SceneObject, SceneRecipe, sample_scene
from lightning_xai.data.scene_captions import (
    RELATION_TEMPLATES,
    RELATION_WORDS,
    caption_vocabulary,
    captions,
    describe_counts,
    describe_objects,
    describe_relation,
    number_word,
    plural,
)
from lightning_xai.data.scene_relations import Relation, holds

RECIPE = SceneRecipe()
SAMPLED = [sample_scene(RECIPE, 2, "val", index) for index in range(80)]
HAND_MADE = Scene(
    100,
    100,
    Background("plain", (9, 9, 9), (9, 9, 9), 0.0, 20.0),
    (
        SceneObject("cross", "orange", "striped", 80.0, 50.0, 20.0, 0.0),
        SceneObject("star", "red", "solid", 20.0, 50.0, 20.0, 0.0),
        SceneObject("cross", "blue", "dotted", 50.0, 20.0, 30.0, 0.0),
    ),
    (),
    0.0,
    0,
)


def test_known_sentences():
    relation = Relation(1, "left of", 0)
    assert [describe_relation(HAND_MADE, relation, number).text for number in range(4)] == [
        "a red star to the left of an orange striped cross",
        "a red star is to the left of an orange striped cross",
        "there is a red star to the left of an orange striped cross",
        "we see a red star to the left of an orange striped cross",
    ]
    everything = "a red star , a blue dotted cross and an orange striped cross"
    assert describe_objects(HAND_MADE).text == everything
    assert describe_objects(HAND_MADE, (0, 1), template=1).text == "there is an orange striped cross and a red star"
    assert describe_counts(HAND_MADE, template=2).text == "a picture of two crosses and one star"


def test_words_are_tied_to_the_objects_they_speak_of():
    caption = describe_relation(HAND_MADE, Relation(1, "left of", 0))
    assert caption.objects == (1, 1, 1, -1, -1, -1, -1, 0, 0, 0, 0)
    assert describe_counts(HAND_MADE).objects == (-1, -1, -1, 1, 1)
    for scene in SAMPLED:
        for caption in captions(scene):
            for word, number in zip(caption.words, caption.objects, strict=True):
                if number >= 0:
                    item = scene.objects[number]
                    assert word in ("a", "an", "one", item.colour, item.texture, item.shape)


def test_swapping_the_objects_swaps_the_words():
    for template in range(len(RELATION_TEMPLATES)):
        one = describe_relation(HAND_MADE, Relation(0, "above", 1), template).text
        other = describe_relation(HAND_MADE, Relation(1, "above", 0), template).text
        first, second = one.replace("there is ", "").replace("we see ", "").replace(" is", "").split(" above ")
        assert other == one.replace(first, "X").replace(second, first).replace("X", second)


NOUN = r"(?:a|an) (?:{colours})(?: (?:{textures}))? (?:{shapes})".format(
    colours="|".join(RECIPE.colours), textures="|".join(RECIPE.textures), shapes="|".join(RECIPE.shapes)
)
COUNT = rf"(?:one (?:{'|'.join(RECIPE.shapes)})|(?:two|three|four|five|six) (?:{'|'.join(map(plural, RECIPE.shapes))}))"
LIST = r"(?:there is |a picture of )?{0}(?: , {0})*(?: and {0})?"
RELATION = rf"(?:there is |we see )?{NOUN}(?: is)? (?:{'|'.join(RELATION_WORDS.values())}) {NOUN}"
GRAMMAR = re.compile("|".join((LIST.format(NOUN), LIST.format(COUNT), RELATION)))


def test_captions_follow_the_grammar_and_its_vocabulary():
    vocabulary = set(caption_vocabulary(RECIPE))
    said = set()
    for scene in SAMPLED:
        for caption in captions(scene, count=8):
            assert GRAMMAR.fullmatch(caption.text), caption.text
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption.text)
            said.update(caption.words)
    assert said <= vocabulary
    assert len(said) > 0.9 * len(vocabulary)


def test_captions_are_true_different_and_always_the_same():
    for scene in SAMPLED:
        ours = captions(scene)
        assert ours == captions(scene)
        assert 2 <= len(ours) <= 5 and len({caption.text for caption in ours}) == len(ours)
        for relation in (caption.relation for caption in ours if caption.relation):
            assert holds(scene, *relation)


def test_fewer_captions_on_request():
    assert len(captions(SAMPLED[0], count=1)) == 1


@pytest.mark.parametrize(("count", "word"), [(1, "one"), (10, "ten"), (11, "11")])
def test_numbers(count, word):
    assert number_word(count) == word
