"""Curves of runs."""

import numpy as np
import pytest

from lightning_xai.draw.curves import draw_curves
from lightning_xai.draw.palette import LINES


def log(offset=0.0):
    numbers = [0.1 * i for i in range(12)]
    return [{"epoch": e, "train_loss": 5 - e + offset, "test_coco_eval_bbox": numbers} for e in range(4)]


def coloured(picture, colour):
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.all(np.abs(picture.astype(int) - rgb) < 20, -1).sum()


def test_every_run_is_drawn_in_its_colour():
    one = draw_curves({"base": log()}, ["loss"])
    two = draw_curves({"base": log(), "refined": log(1.0)}, ["loss"], com=1.0, title="runs")
    assert coloured(one, LINES[0]) > 300
    assert coloured(one, LINES[1]) == 0
    assert coloured(two, LINES[0]) > 300
    assert coloured(two, LINES[1]) > 300


def test_a_field_that_no_run_has_is_left_out_and_all_of_them_an_error():
    assert draw_curves({"base": log()}).dtype == np.uint8
    with pytest.raises(ValueError, match="no log holds class_error; there are AP, AP50"):
        draw_curves({"base": log()}, ["class_error"])


def test_a_single_epoch():
    assert draw_curves({"base": log()[:1]}).dtype == np.uint8
