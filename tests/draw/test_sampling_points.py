"""Sampling points: colours, places, and what is outside."""

import numpy as np
import pytest

from lightning_xai.draw.palette import WEIGHTS
from lightning_xai.draw.sampling_points import (
    PointPanel,
    add_points,
    draw_sampling_points,
    surroundings,
    weight_colours,
)
from lightning_xai.draw.sheet import Sheet, show_image

BLACK = np.zeros((96, 128, 3), np.uint8)


def test_colours_are_weight_over_largest():
    weights = np.array([0.0, 0.05, 0.1], np.float32)
    np.testing.assert_allclose(weight_colours(weights), WEIGHTS([0.0, 0.5, 1.0]), atol=1 / 255)
    np.testing.assert_allclose(weight_colours(weights, largest=0.2), WEIGHTS([0.0, 0.25, 0.5]), atol=1 / 255)
    np.testing.assert_allclose(weight_colours(np.zeros(3)), WEIGHTS([0.0] * 3))


def test_saturated_colours_are_the_top_colour_from_one_per_cent_on():
    colours = weight_colours(np.array([0.001, 0.0101, 0.5]), saturated=True)
    assert not np.allclose(colours[0], colours[1])
    np.testing.assert_allclose(colours[1], WEIGHTS.resampled(100)(1.0))
    np.testing.assert_allclose(colours[1], colours[2])


def test_the_heaviest_point_is_the_largest_and_lies_at_its_place():
    panel = PointPanel(np.array([[32.0, 24.0], [96.0, 72.0]]), np.array([0.1, 0.9]), np.array([64.0, 10.0]))
    picture = draw_sampling_points(BLACK, [panel])
    top = np.all(np.abs(picture.astype(int) - (np.array(WEIGHTS(1.0)[:3]) * 255).round()) < 6, -1)[:-40, :740]
    rows, columns = np.nonzero(top)
    assert columns.mean() == pytest.approx(14 + 96 / 128 * 720, abs=2)
    assert rows.mean() - rows.min() > 4


def test_points_are_sized_by_weight_and_drawn_heaviest_last():
    sheet = Sheet((96, 128))
    (axes,) = sheet.panels
    show_image(axes, BLACK)
    xy, weights = np.array([[1.0, 2], [3, 4], [5, 6]]), np.array([0.2, 0.5, 0.3])
    add_points(axes, PointPanel(xy, weights, np.zeros(2)), largest=0.5)
    (points,) = axes.collections
    np.testing.assert_allclose(points.get_offsets(), xy[[0, 2, 1]])
    assert np.all(np.diff(points.get_sizes()) > 0)


def test_samples_outside_are_told():
    sheet = Sheet((96, 128))
    (axes,) = sheet.panels
    show_image(axes, BLACK)
    panel = PointPanel(np.array([[-5.0, 2], [3, 4], [5, 600]]), np.array([0.2, 0.5, 0.3]), np.zeros(2))
    add_points(axes, panel, largest=0.5)
    assert axes.texts[0].get_text() == "2 of 3 samples (50% of the weight) lie outside"


def test_surroundings_hold_boxes_and_all_samples_but_the_lightest():
    xy = np.array([[20.0, 20], [20, 21], [90, 30], [127, 95], [500, 20]])
    weights = np.array([0.5, 0.5, 0.03, 0.001, 0.001])
    panel = PointPanel(xy, weights, np.array([22.0, 18]), box=np.array([10.0, 5, 60, 40]))
    x0, y0, x1, y1 = surroundings((96, 128), [panel])
    assert 0 <= x0 <= 10 and 0 <= y0 <= 5
    assert 90 <= x1 <= 110 and 40 <= y1 < 90


@pytest.mark.parametrize("zoom", [False, True])
def test_a_grid_with_empty_weights(zoom):
    panels = [PointPanel(np.zeros((4, 2)), np.zeros(4), np.zeros(2), caption=f"head {i}") for i in range(5)]
    assert draw_sampling_points(BLACK, panels, columns=3, zoom=zoom).dtype == np.uint8
