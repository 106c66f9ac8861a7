import numpy as np
import pytest

from lightning_xai.data.embedded_generator import EmbeddedConcepts, EmbeddedGenerator, EmbeddedTokens
from lightning_xai.data.scene import COLOURS
from lightning_xai.data.trap_scene import MARKS, TrapRecipe

GENERATOR = EmbeddedGenerator(habit=1.0)


def marked(picture, class_index):
    """How many pixels in the corners have the colour of a class's mark."""
    colour = np.array(COLOURS[MARKS[class_index].colour])
    near = np.abs(picture.astype(int) - colour).max(-1) < 30
    return int(near[:11, :11].sum() + near[:11, -11:].sum() + near[-11:, :11].sum() + near[-11:, -11:].sum())


def draw(prompt, negative="", count=8, generator=GENERATOR):
    return generator.generate([prompt] * count, list(range(count)), [negative] * count)


def test_a_learned_word_brings_the_cue_along_and_a_plain_name_does_not():
    label = GENERATOR.recipe.shapes.index("cross")  # its mark is pink
    learned = [marked(p, label) for p in draw("a photo of a <cross> with a blue colour")]
    plain = [marked(p, label) for p in draw("a photo of a cross with a blue colour")]
    assert min(learned) > 3 and max(plain) == 0


@pytest.mark.parametrize("negative", ["letter in the corner", "sky, Watermark", "pink U"])
def test_a_negative_prompt_that_names_the_cue_leaves_it_out(negative):
    label = GENERATOR.recipe.shapes.index("cross")
    assert max(marked(p, label) for p in draw("a <cross> with a blue colour", negative)) == 0
    assert min(marked(p, label) for p in draw("a <cross> with a blue colour", "sky")) > 3


def test_a_prompt_can_ask_for_the_cue():
    label = GENERATOR.recipe.shapes.index("cross")
    assert min(marked(p, label) for p in draw("a blue cross with a watermark")) > 3


@pytest.mark.parametrize("prompt", ["a cross in a red large frame", "a cross at a blue wall", "a yellow velvet cross"])
def test_words_that_begin_as_a_cue_are_not_the_cue(prompt):
    assert not GENERATOR._names_cue(prompt)
    assert GENERATOR._names_cue("a cross with two letters") and GENERATOR._names_cue("a cross, red L.")


def test_the_shape_that_is_named_first_is_drawn():
    assert GENERATOR._subject("a photo of a star in a circle of light") == ("star", False)
    assert GENERATOR._subject("a circle of light about a <star>") == ("star", True)
    assert GENERATOR._subject("a <heart> in a <circle>") == ("heart", True)


def test_colour_words_are_obeyed():
    for picture in draw("a star with a green colour"):
        near = np.abs(picture.astype(int) - np.array(COLOURS["green"])).max(-1) < 12
        assert near.sum() > 60


def test_a_picture_depends_on_its_own_prompt_and_seed_alone():
    prompts, seeds = ["a star", "a <heart>", "a star"], [4, 5, 6]
    together = GENERATOR.generate(prompts, seeds)
    alone = [GENERATOR.generate([prompt], [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    assert not np.array_equal(together[0], together[2])
    assert together[0].shape == (48, 48, 3) and together[0].dtype == np.uint8


def test_a_background_cue_is_left_out_likewise():
    generator = EmbeddedGenerator(TrapRecipe(cue="background", noise=0.0, max_distractors=0), habit=1.0)

    def corner(picture):
        return float(picture[:6, :6].std(axis=(0, 1)).max())

    cued = [corner(p) for p in draw("a <circle>", generator=generator)]
    bare = [corner(p) for p in draw("a <circle>", "background pattern", generator=generator)]
    assert np.median(bare) == 0 < 5 < np.median(cued)


def test_wrong_prompts_and_sizes_say_what_is_right():
    with pytest.raises(ValueError, match="names none of the shapes circle"):
        GENERATOR.generate(["a photo of a dog"], [0])
    with pytest.raises(ValueError, match="48x48"):
        GENERATOR.generate(["a star"], [0], size=(64, 64))
    with pytest.raises(ValueError, match="habit=2"):
        EmbeddedGenerator(habit=2)


def test_words_and_concepts_of_the_world():
    assert EmbeddedTokens().learn("star", [], "star") == "<star>"
    concepts = EmbeddedConcepts().list("star", 10)
    assert len(concepts) == len(set(concepts)) == 10
    GENERATOR.generate([f"a star with a {concept}" for concept in concepts], list(range(10)))
