"""Colours stay apart for every kind of colour vision."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lightning_xai.draw.palette import CATEGORIES, LINES, category_colour, heat_colours, layer_colours, name_of

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "full": np.eye(3).tolist(),
}


def seen(colour, vision):
    linear = np.array(to_rgb(colour)) ** 2.2
    return np.clip(np.array(VISION[vision]) @ linear, 0, 1) ** (1 / 2.2)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("colours", [CATEGORIES, LINES])
def test_categories_differ(colours, vision):
    for a, b in combinations(colours, 2):
        assert np.linalg.norm(seen(a, vision) - seen(b, vision)) > 0.1, (a, b)


@pytest.mark.parametrize("vision", VISION)
def test_heat_and_layers_run_one_way_in_brightness(vision):
    """So that they can be read without any hue."""
    heat = [seen(heat_colours()(x)[:3], vision).mean() for x in np.linspace(0, 1, 12)]
    assert np.all(np.diff(heat) < 0)
    layers = [seen(colour[:3], vision).mean() for colour in layer_colours(7)]
    assert np.all(np.diff(layers) > 0)


def test_no_weight_no_colour():
    assert heat_colours()(0.0)[3] == 0


def test_names():
    names = ["", "cell"]
    assert name_of(1, names) == "cell"
    assert name_of(0, names) == "class 0"
    assert name_of(5, names) == "class 5"
    assert category_colour(0) == category_colour(7) == CATEGORIES[0]
