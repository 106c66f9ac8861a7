import math
from itertools import pairwise

import numpy as np
import pytest

from lightning_xai.data.shapes import SHAPES, distance_to_strokes

AXIS = (np.arange(1600) + 0.5) / 1600 * 3 - 1.5
U, V = np.meshgrid(AXIS, AXIS)
CELL = (3 / 1600) ** 2


def lens(radius: float, other: float, distance: float) -> float:
    """Area that two discs share."""
    a = (distance**2 + radius**2 - other**2) / (2 * distance * radius)
    b = (distance**2 + other**2 - radius**2) / (2 * distance * other)
    kite = math.sqrt(4 * distance**2 * radius**2 - (distance**2 + radius**2 - other**2) ** 2) / 2
    return radius**2 * math.acos(a) + other**2 * math.acos(b) - kite


AREAS = {
    "circle": math.pi,
    "square": 1.8**2,
    "triangle": math.sqrt(3),
    "star": 5 * 1.05 * 0.525 * math.sin(math.pi / 5),
    "cross": 2 * 2 * 0.64 - 0.64**2,
    "heart": (2 * 0.585) ** 2 + math.pi * 0.585**2,
    "ring": math.pi * (1 - 0.5**2),
    "crescent": math.pi - lens(1.0, 0.8, 0.5),
}


@pytest.mark.parametrize("name", SHAPES)
def test_area_is_the_one_of_school_geometry(name):
    inside = SHAPES[name].distance(U, V) <= 0
    assert inside.sum() * CELL == pytest.approx(AREAS[name], rel=2e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_reach_is_the_farthest_point(name):
    inside = SHAPES[name].distance(U, V) <= 0
    farthest = np.hypot(U, V)[inside].max()
    assert SHAPES[name].reach - 0.02 < farthest <= SHAPES[name].reach


@pytest.mark.parametrize("name", SHAPES)
def test_upright_shape_fills_its_frame(name):
    inside = SHAPES[name].distance(U, V) <= 0
    longest = max(np.ptp(U[inside]), np.ptp(V[inside]))
    assert 1.75 < longest <= 2.01


@pytest.mark.parametrize("name", SHAPES)
def test_distance_grows_by_one_per_unit_across_the_outline(name):
    distance = SHAPES[name].distance(U, V)
    slope = np.hypot(*np.gradient(distance, AXIS[1] - AXIS[0]))
    near = slope[np.abs(distance) < 0.02]
    assert np.median(near) == pytest.approx(1, abs=0.01)
    assert np.mean(np.abs(near - 1) > 0.05) < 0.02  # corners


def test_shapes_stand_upright_on_a_canvas_whose_rows_go_down():
    for name in ("triangle", "star"):
        distance = SHAPES[name].distance
        assert distance(np.array([[0.0]]), np.array([[-0.95]])) < 0 < distance(np.array([[0.0]]), np.array([[0.95]]))
    heart = SHAPES["heart"].distance
    assert heart(np.array([[0.0]]), np.array([[0.9]])) < 0 < heart(np.array([[0.0]]), np.array([[-0.9]]))


def test_strokes_against_many_points_on_the_polyline():
    points = ((3.0, 4.0), (15.0, 7.0), (9.0, 18.0))
    x, y = np.arange(20) + 0.5, np.arange(22) + 0.5
    share = np.linspace(0, 1, 4001)[:, None]
    dense = np.concatenate([np.array(a) + share * (np.array(b) - a) for a, b in pairwise(points)])
    expected = np.array([[np.hypot(dense[:, 0] - i, dense[:, 1] - j).min() for i in x] for j in y])
    np.testing.assert_allclose(distance_to_strokes(x, y, points), expected, atol=1e-4)


def test_a_stroke_of_one_point_is_refused():
    with pytest.raises(ValueError, match="at least 2 points"):
        distance_to_strokes(np.zeros(1), np.zeros(1), ((1.0, 2.0),))
