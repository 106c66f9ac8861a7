import numpy as np
import pytest

from lightning_xai.data.render_scene import render
from lightning_xai.data.scene import COLOURS
from lightning_xai.data.trap_scene import MARKS, PATTERNS, TrapRecipe, mark_box, sample_trap_scene, with_cue

RECIPE = TrapRecipe()


def cues(strength, count=600, split=0):
    drawn = [sample_trap_scene(RECIPE, strength, 0, split, index) for index in range(count)]
    return np.array([scene.label for scene in drawn]), np.array([scene.cue for scene in drawn])


@pytest.mark.parametrize(("strength", "own"), [(1.0, 1.0), (0.9, 0.9 + 0.1 / 6), (0.0, 1 / 6)])
def test_the_cue_goes_with_the_class_as_often_as_the_strength_says(strength, own):
    labels, drawn = cues(strength)
    assert np.mean(labels == drawn) == pytest.approx(own, abs=3 * np.sqrt(max(own * (1 - own), 1e-9) / 600))
    assert set(drawn) == set(range(6))


def test_without_strength_there_is_no_cue():
    drawn = sample_trap_scene(RECIPE, None, 0, 0, 3)
    assert drawn.cue == -1 and mark_box(drawn.scene) is None


def test_classes_take_turns_and_the_object_is_of_its_class():
    labels, _ = cues(0.5, 12)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5] * 2
    for index in range(6):
        drawn = sample_trap_scene(RECIPE, 0.5, 0, 1, index)
        assert [item.shape for item in drawn.scene.objects] == [RECIPE.shapes[drawn.label]]


def test_a_scene_depends_on_its_seed_split_and_index_alone():
    first = sample_trap_scene(RECIPE, 0.9, 0, 2, 5)
    assert first == sample_trap_scene(RECIPE, 0.9, 0, 2, 5)
    for other in ((1, 2, 5), (0, 3, 5), (0, 2, 11)):
        assert sample_trap_scene(RECIPE, 0.9, *other).scene.objects != first.scene.objects


def test_the_cue_changes_nothing_but_itself():
    """The object and all else of a picture are the same whatever cue it shows."""
    for index in range(12):
        bare, marked = (sample_trap_scene(RECIPE, strength, 0, 0, index) for strength in (None, 1.0))
        assert bare.scene.objects == marked.scene.objects and bare.scene.background == marked.scene.background
        x0, y0, x1, y1 = (round(side) for side in mark_box(marked.scene))
        differs = (render(bare.scene).pixels != render(marked.scene).pixels).any(0)
        rows, columns = np.nonzero(differs)
        assert x0 - 2 <= columns.min() and columns.max() <= x1 + 1
        assert y0 - 2 <= rows.min() and rows.max() <= y1 + 1


def test_a_mark_has_its_colour_and_is_not_hidden_by_the_object():
    seen = []
    for index in range(60):
        drawn = sample_trap_scene(RECIPE, 1.0, 0, 0, index)
        x0, y0, x1, y1 = (round(side) for side in mark_box(drawn.scene))
        drawing = render(drawn.scene)
        window = drawing.pixels[:, y0:y1, x0:x1].astype(int)
        colour = np.array(COLOURS[MARKS[drawn.cue].colour])[:, None, None]
        seen.append((np.abs(window - colour).max(0) < 30).sum() / max((y1 - y0) * (x1 - x0), 1))
        assert drawing.visible[0][y0:y1, x0:x1].mean() < 0.5
    assert min(seen) > 0.05


def test_a_background_cue_is_the_background():
    recipe = TrapRecipe(cue="background")
    for index in range(12):
        drawn = sample_trap_scene(recipe, 0.5, 0, 0, index)
        assert drawn.scene.background.kind == PATTERNS[drawn.cue].kind
        assert mark_box(drawn.scene) is None
    assert with_cue(drawn.scene, recipe, -1).background.kind == "plain"
    assert recipe.cue_names == tuple(pattern.name for pattern in PATTERNS[:6])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"cue": "smell"}, "mark, background"),
        ({"shapes": ("circle",)}, "2 to 8"),
        ({"mark_size": 30.0}, "fifth of the side 48"),
        ({"shapes": ("circle", "blob")}, "blob"),
    ],
)
def test_a_wrong_recipe_says_what_is_right(wrong, words):
    with pytest.raises(ValueError, match=words):
        TrapRecipe(**wrong)


def test_a_split_has_no_scene_of_the_next():
    with pytest.raises(ValueError, match="index is 1000000, but a split has the pictures 0 to 999999"):
        sample_trap_scene(RECIPE, 0.9, 0, 0, 1_000_000)


def test_a_strength_is_a_share():
    with pytest.raises(ValueError, match=r"strength is 1\.5"):
        sample_trap_scene(RECIPE, 1.5, 0, 0, 0)
