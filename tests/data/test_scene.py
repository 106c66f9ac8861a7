import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from lightning_xai.data.render_scene import render
from lightning_xai.data.scene import COLOURS, SceneObject, SceneRecipe, footprint, sample_scene, visible_fraction

RECIPE = SceneRecipe()
SCENES = [sample_scene(RECIPE, 0, "train", index) for index in range(400)]


def test_a_scene_depends_on_seed_split_and_index_alone():
    again = [sample_scene(SceneRecipe(), 0, "train", index) for index in reversed(range(400))][::-1]
    assert again == SCENES
    others = [
        sample_scene(RECIPE, 1, "train", 0),
        sample_scene(RECIPE, 0, "val", 0),
        sample_scene(RECIPE, 0, "test", 0),
    ]
    assert len({scene.noise_seed for scene in (*SCENES, *others)}) == 403


def test_a_scene_stays_the_same_for_ever():
    # A run's checkpoints and numbers are only comparable while seed 0 means these scenes.
    scene = sample_scene(SceneRecipe(), 0, "val", 0)
    assert [item.shape for item in scene.objects] == ["star", "star", "circle", "star", "triangle"]
    first = scene.objects[0]
    assert (first.x, first.y, first.size) == pytest.approx((114.641, 22.888, 16.776), abs=1e-3)


def test_recipe_bounds_hold():
    counts = {len(scene.objects) for scene in SCENES}
    assert counts == {2, 3, 4, 5, 6}
    assert {len(scene.distractors) for scene in SCENES} == {0, 1, 2, 3, 4, 5}
    assert {scene.background.kind for scene in SCENES} == set(RECIPE.backgrounds)
    for item in (item for scene in SCENES for item in scene.objects):
        assert RECIPE.min_size <= item.size <= RECIPE.max_size
        assert item.reach <= item.x <= RECIPE.width - item.reach
        assert item.reach <= item.y <= RECIPE.height - item.reach


def test_enough_of_each_object_stays_visible_and_some_are_hidden_in_part():
    fractions = np.concatenate([render(scene).visible_fractions for scene in SCENES[:150]])
    assert fractions.min() >= RECIPE.min_visible
    assert 0.1 < np.mean(fractions < 0.999) < 0.7


def test_visible_fraction_is_the_drawn_one():
    for scene in SCENES[:40]:
        expected = render(scene).visible_fractions
        ours = [visible_fraction(scene.objects, which, 128, 128) for which in range(len(scene.objects))]
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("attribute", ["colour", "texture"])
def test_attributes_carry_no_information_about_the_class(attribute):
    recipe = SceneRecipe(min_visible=0.01)
    pairs = [
        (recipe.shapes.index(item.shape), getattr(recipe, f"{attribute}s").index(getattr(item, attribute)))
        for index in range(600)
        for item in sample_scene(recipe, 5, "train", index).objects
    ]
    table = np.zeros((len(recipe.shapes), len(getattr(recipe, f"{attribute}s"))))
    np.add.at(table, tuple(np.array(pairs).T), 1)
    assert chi2_contingency(table).pvalue > 1e-4


def test_sizes_are_uniform_on_a_logarithmic_scale():
    recipe = SceneRecipe(min_objects=1, max_objects=1, min_size=14, max_size=56)
    sizes = [sample_scene(recipe, 0, "train", index).objects[0].size for index in range(600)]
    assert np.mean(np.array(sizes) < 28) == pytest.approx(0.5, abs=0.08)


def test_footprint_is_the_turned_and_moved_shape():
    item = SceneObject("square", "red", "solid", 20.0, 30.0, 20.0, 30.0)
    place = footprint(item, 64, 64)
    turned = math.radians(30)
    for row, column in ((0, 0), (5, 12), (12, 3)):
        x = place.columns.start + column + 0.5 - item.x
        y = place.rows.start + row + 0.5 - item.y
        along, down = x * math.cos(turned) + y * math.sin(turned), -x * math.sin(turned) + y * math.cos(turned)
        assert place.distance[row, column] == pytest.approx(max(abs(along), abs(down)) - 9, abs=1e-4)


def test_footprint_is_cut_at_the_canvas():
    place = footprint(SceneObject("circle", "red", "solid", 2.0, 60.0, 20.0, 0.0), 64, 64)
    assert (place.columns.start, place.rows.stop) == (0, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": ("circle", "hexagon")}, "shapes must be .*'hexagon'"),
        ({"colours": ()}, "colours must be one or more"),
        ({"textures": ("solid", "solid")}, "textures must be one or more different"),
        ({"backgrounds": ("forest",)}, "backgrounds must be .*'forest'"),
        ({"min_objects": 7}, "min_objects=7 and max_objects=6"),
        ({"min_size": 60.0}, "min_size=60.0 and max_size=56.0"),
        ({"max_size": 120.0}, "fit into 128x128 pixels"),
        ({"min_visible": 0.0}, r"min_visible must lie in \(0, 1\], but is 0.0"),
        ({"noise": -1.0}, "must not be negative"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **change)


def test_a_recipe_without_room_says_so():
    crowded = SceneRecipe(
        height=48, width=48, min_objects=30, max_objects=30, min_size=20, max_size=20, min_visible=1.0
    )
    with pytest.raises(ValueError, match="no place for min_objects=30"):
        sample_scene(crowded, 0, "train", 0)


def test_unknown_split_and_negative_index_are_refused():
    with pytest.raises(ValueError, match="train, val, test, but is 'training'"):
        sample_scene(RECIPE, 0, "training", 0)
    with pytest.raises(ValueError, match="must not be negative, but are 0 and -1"):
        sample_scene(RECIPE, 0, "train", -1)


def test_palette_colours_keep_apart_for_dichromats():
    # Linear RGB to what a protanope and a deuteranope see (Viénot, Brettel & Mollon 1999), compared in that space.
    to_lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    protan = np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]])
    deutan = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    colours = (np.array(list(COLOURS.values())) / 255) ** 2.2
    for loss in (protan, deutan):
        seen = np.clip(colours @ (np.linalg.inv(to_lms) @ loss @ to_lms).T, 0, 1) ** (1 / 2.2)
        gaps = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[~np.eye(len(seen), dtype=bool)]
        assert gaps.min() > 0.1
