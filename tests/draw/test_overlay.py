"""Overlays of relevance on photographs."""

from itertools import pairwise

import numpy as np
import pytest

from lightning_xai.draw.overlay import heat_overlay, jet_colours, scaled


def test_known_colours_of_jet():
    """Landmarks of OpenCV's table: the ends are half blue and half red, the middle is green, each channel saturates."""
    colours = jet_colours().tolist()
    assert colours[0] == [0, 0, 128]
    assert colours[255] == [128, 0, 0]
    assert colours[1] == [0, 0, 132]
    assert colours[96][2] == 254 and colours[96][1] == 255
    assert colours[127][1] == colours[128][1] == 255
    assert max(abs(a - b) for x, y in pairwise(colours) for a, b in zip(x, y, strict=True)) == 4


def test_constant_arrays_are_zero():
    assert not scaled(np.full((2, 3), 7.0)).any()
    assert scaled(np.array([2, 4, 3], np.uint8)).tolist() == [0, 1, 0.5]


def test_the_hottest_place_is_red_and_the_photo_keeps_its_channels():
    image = np.zeros((4, 6, 3), np.uint8)
    image[2, :, 0] = 200  # a red line
    heat = np.zeros((4, 6))
    heat[0, 5] = 3.0
    picture = heat_overlay(image, heat)
    assert picture.dtype == np.uint8
    assert picture[0, 5, 0] in (127, 128) and not picture[0, 5, 1:].any()
    assert picture[3, 0, 2] in (127, 128) and not picture[3, 0, :2].any()
    assert picture[2, 0, 0] == 255 and picture[2, 0, 2] in (127, 128)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"heat \(2, 2\)"):
        heat_overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2)))
