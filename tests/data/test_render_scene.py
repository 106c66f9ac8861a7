from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import maximum_filter

from lightning_xai.data.render_scene import mask_boxes, render
from lightning_xai.data.scene import (
    BACKGROUNDS,
    COLOURS,
    TEXTURES,
    Background,
    Distractor,
    Scene,
    SceneObject,
    SceneRecipe,
    sample_scene,
)

GREY = (128, 128, 128)


def item(shape="square", colour="red", x=32.0, y=32.0, size=20.0, rotation=0.0, texture="solid") -> SceneObject:
    return SceneObject(shape, colour, texture, x, y, size, rotation)


def scene(*objects: SceneObject, **changes) -> Scene:
    plain = Scene(64, 64, Background("plain", GREY, GREY, 0.0, 20.0), objects, (), 0.0, 7)
    return replace(plain, **changes)


SAMPLED = [sample_scene(SceneRecipe(), 3, "train", index) for index in range(40)]


def test_same_scene_same_pixels():
    for one in SAMPLED[:10]:
        first, second = render(one), render(replace(one))
        assert np.array_equal(first.pixels, second.pixels)
        assert np.array_equal(first.owner, second.owner)


def test_an_upright_square_has_the_known_mask_and_box():
    drawing = render(scene(item("square", x=40.0, y=30.0, size=20.0)))  # half side 9
    expected = np.zeros((64, 64), bool)
    expected[21:39, 31:49] = True
    assert np.array_equal(drawing.visible[0], expected)
    assert drawing.boxes.tolist() == [[31, 21, 49, 39]]
    assert drawing.areas.tolist() == [18 * 18]


def test_boxes_and_areas_are_those_of_the_visible_masks():
    for one in SAMPLED:
        drawing = render(one)
        for mask, box, area in zip(drawing.visible, drawing.boxes, drawing.areas, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert area == len(rows)


def test_a_hidden_object_has_an_empty_box():
    drawing = render(scene(item(size=10), item(size=30)))
    assert drawing.boxes[0].tolist() == [0, 0, 0, 0]
    assert drawing.visible_fractions.tolist() == [0, 1]


def test_boxes_of_no_masks():
    assert mask_boxes(np.zeros((0, 5, 5), bool)).shape == (0, 4)
    assert render(scene()).boxes.shape == (0, 4)


def test_later_objects_hide_earlier_ones():
    drawing = render(scene(item(colour="red", x=28), item(colour="blue", x=36), item(colour="green", x=44)))
    red, blue, green = drawing.amodal
    assert np.array_equal(drawing.visible, [red & ~blue & ~green, blue & ~green, green])
    assert drawing.picture[32, 32].tolist() == list(COLOURS["blue"])
    assert drawing.picture[32, 41].tolist() == list(COLOURS["green"])
    # Half of the red one's 18 columns lie under the blue one (27 to 45), which begins 8 columns after it.
    assert drawing.visible_fractions == pytest.approx([8 / 18, 8 / 18, 1])


def test_visible_masks_split_the_covered_pixels():
    for one in SAMPLED:
        drawing = render(one)
        assert np.array_equal(drawing.visible.sum(0), drawing.amodal.any(0))
        assert np.array_equal(drawing.owner >= 0, drawing.amodal.any(0))


def test_masks_are_where_the_picture_differs_from_the_empty_scene():
    for one in SAMPLED:
        quiet = replace(one, noise=0.0)
        drawing, empty = render(quiet), render(replace(quiet, objects=()))
        changed = (drawing.pixels != empty.pixels).any(0)
        assert np.mean(changed[drawing.owner >= 0]) > 0.99
        # Beyond the masks there is the soft edge of one pixel, at sharp tips of two.
        covered = drawing.owner >= 0
        around = maximum_filter(covered, 3)
        assert not changed[~maximum_filter(covered, 5)].any()
        assert np.mean(changed[~around]) < 1e-3


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "star", "cross", "heart", "ring", "crescent"])
def test_edges_are_as_soft_as_the_share_of_the_pixel_that_is_covered(shape):
    # The reference draws hard edges at 8 times the resolution; the outline is dark, so the share is read off its blend.
    small, factor = item(shape, x=32.3, y=31.6, size=41.0, rotation=17.0), 8
    large = replace(small, x=small.x * factor, y=small.y * factor, size=small.size * factor)
    mask = render(scene(large, height=64 * factor, width=64 * factor)).amodal[0]
    share = mask.reshape(64, factor, 64, factor).mean((1, 3))
    picture = render(scene(small)).picture.astype(float)
    edge = (share > 0.02) & (share < 0.98)
    dark = np.array(COLOURS["red"]) * 0.45
    expected = 128 + share[edge][:, None] * (dark - 128)
    assert np.abs(picture[edge] - expected).mean() < 6
    assert (np.abs(picture[share == 0] - 128) > 12).mean() < 1e-3  # sharp tips reach a little farther


@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_change_colours_but_not_masks(texture):
    plain, textured = render(scene(item(size=40))), render(scene(item(size=40, texture=texture)))
    assert np.array_equal(plain.owner, textured.owner)
    inside = textured.picture[16:48, 16:48].reshape(-1, 3)
    shades = len(np.unique(inside, axis=0))
    assert shades == 1 if texture == "solid" else shades > 5


@pytest.mark.parametrize("kind", BACKGROUNDS)
@pytest.mark.parametrize("angle", [0.0, 37.0, 250.0])
def test_backgrounds_lie_between_their_two_colours(kind, angle):
    drawing = render(scene(background=Background(kind, (40, 50, 60), (80, 70, 60), angle, 16.0)))
    red, green, blue = drawing.pixels
    assert red.min() >= 40 and red.max() <= 80 and green.min() >= 50 and green.max() <= 70
    assert (blue == 60).all()
    assert (red.max() - red.min() > 30) == (kind != "plain")


def test_distractors_are_drawn_and_belong_to_nobody():
    stroke = Distractor("line", (255, 0, 0), 1.0, ((5.0, 10.5), (50.0, 10.5)), 3.0, 1.0)
    drawing = render(scene(item(x=40, y=10, size=16), distractors=(stroke,)))
    assert drawing.picture[10, 20].tolist() == [255, 0, 0]
    assert drawing.owner[10, 20] == -1
    assert drawing.picture[10, 40].tolist() == list(COLOURS["red"])  # objects are in front


def test_distractors_may_leave_the_canvas():
    away = Distractor("line", (255, 0, 0), 1.0, ((-50.0, -20.0), (-10.0, -10.0)), 3.0, 1.0)
    across = Distractor("line", (255, 0, 0), 1.0, ((-50.0, 32.5), (100.0, 32.5)), 3.0, 1.0)
    assert (render(scene(distractors=(away,))).pixels == 128).all()
    assert (render(scene(distractors=(across,))).picture[32] == (255, 0, 0)).all()


def test_noise_has_the_asked_deviation_and_its_own_seed():
    noisy = [
        render(scene(height=128, width=128, noise=6.0, noise_seed=seed)).pixels.astype(float) for seed in (1, 1, 2)
    ]
    assert np.array_equal(noisy[0], noisy[1]) and not np.array_equal(noisy[0], noisy[2])
    assert noisy[0].std() == pytest.approx(6, rel=0.03)
    assert noisy[0].mean() == pytest.approx(128, abs=0.2)
    neighbours = np.corrcoef(noisy[0][:, :, 1:].ravel(), noisy[0][:, :, :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.02


def test_noise_on_a_canvas_whose_size_is_no_multiple_of_eight():
    assert render(scene(height=33, width=35, noise=4.0)).pixels.shape == (3, 33, 35)


def test_bright_and_dark_pixels_do_not_wrap_around():
    for grey in (0, 255):
        background = Background("plain", (grey,) * 3, (grey,) * 3, 0.0, 20.0)
        pixels = render(scene(background=background, noise=10.0)).pixels.astype(int)
        assert np.abs(pixels - grey).max() <= 20
