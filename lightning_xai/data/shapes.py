"""Signed distances of the shapes that the embedded world is drawn with.

A distance is negative inside, positive outside, and in units of the shape's half extent: the upright shape reaches from
-1 to 1 in its longer direction. `u` points right and `v` points down, both of shape (h, w).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Shape(NamedTuple):
    """A shape's signed distance and its `reach`, the greatest distance of one of its points from the centre."""

    distance: Distance
    reach: float


def circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Disc of radius 1."""
    return np.sqrt(u * u + v * v) - 1


def square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Square of side 1.8; a little smaller than its frame so that it does not look larger than the circle."""
    return np.maximum(np.abs(u), np.abs(v)) - 0.9


def triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Equilateral triangle with its tip up, side 2, its centroid at the centre."""
    sides = np.abs(u) * (math.sqrt(3) / 2) - v * 0.5
    return np.maximum(sides, v) - 1 / math.sqrt(3)


def star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five-pointed star with one tip up: tips at radius 1.05, notches at half of it."""
    fifth = math.pi / 5
    x, y = np.abs(u), -v
    # Two mirrors lay all five arms onto the upper one, whose right half is bounded by one line from tip to notch.
    for mirror_x, mirror_y in ((math.cos(fifth), -math.sin(fifth)), (-math.cos(fifth), -math.sin(fifth))):
        beyond = 2 * np.maximum(x * mirror_x + y * mirror_y, 0)
        x = x - beyond * mirror_x
        y = y - beyond * mirror_y
    tip, notch = 1.05, 0.525
    edge_x, edge_y = notch * math.sin(fifth), notch * math.cos(fifth) - tip
    length = math.hypot(edge_x, edge_y)
    return np.abs(x) * (-edge_y / length) + (y - tip) * (edge_x / length)


def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Plus sign whose arms are 0.64 wide."""
    across, along = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(across, along) - 1, np.minimum(across, along) - 0.32)


def heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Heart: a square on its corner with a half disc on each of its upper sides."""
    half = 0.585  # half of the square's side and radius of the discs
    across, down = np.abs(u), v - 0.12
    corner = (across + np.abs(down)) / math.sqrt(2) - half
    centre = half / math.sqrt(2)
    lobe = np.sqrt((across - centre) ** 2 + (down + centre) ** 2) - half
    return np.minimum(corner, lobe)


def ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Annulus between the radii 0.5 and 1."""
    return np.abs(np.sqrt(u * u + v * v) - 0.75) - 0.25


def crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Disc of radius 1 from which a disc of radius 0.8 to the right is taken away."""
    return np.maximum(np.sqrt(u * u + v * v) - 1, 0.8 - np.sqrt((u - 0.5) ** 2 + v * v))


SHAPES: dict[str, Shape] = {
    "circle": Shape(circle, 1.0),
    "square": Shape(square, 0.9 * math.sqrt(2)),
    "triangle": Shape(triangle, 2 / math.sqrt(3)),
    "star": Shape(star, 1.05),
    "cross": Shape(cross, math.hypot(1, 0.32)),
    "heart": Shape(heart, 1.093),
    "ring": Shape(ring, 1.0),
    "crescent": Shape(crescent, 1.0),
}


def distance_to_strokes(x: np.ndarray, y: np.ndarray, points: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Distance of the pixel centres `x` (w,), `y` (h,) to the nearest point of the polyline `points`, (h, w)."""
    nearest: np.ndarray | None = None
    for (x0, y0), (x1, y1) in pairwise(points):
        along_x, along_y = x1 - x0, y1 - y0
        squared = max(along_x**2 + along_y**2, 1e-6)
        from_x, from_y = x - x0, y - y0
        position = np.clip((from_x * (along_x / squared))[None] + (from_y * (along_y / squared))[:, None], 0, 1)
        offset_x = from_x[None] - position * along_x
        offset_y = from_y[:, None] - position * along_y
        distance = offset_x * offset_x + offset_y * offset_y
        nearest = distance if nearest is None else np.minimum(nearest, distance)
    if nearest is None:
        raise ValueError(f"a stroke needs at least 2 points, but was given {points!r}")
    return np.sqrt(nearest)
