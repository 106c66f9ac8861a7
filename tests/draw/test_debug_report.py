import math

import numpy as np

from lightning_xai.draw.debug_report import draw_before_after, draw_repair

RUNS = {
    "before": {"test": [0.9, 0.95], "heldout": [0.3, 0.4]},
    "S-Random": {"test": [0.9, 0.95], "heldout": [0.6, 0.7], "repaired": [0.5, math.nan]},
}
INTERVALS = {
    "before": {"test": (0.92, 0.1), "heldout": (0.35, 0.2)},
    "S-Random": {"test": (0.92, 0.1), "heldout": (0.65, 0.2), "repaired": (0.5, math.nan)},
}


def test_the_numbers_of_every_strategy_are_drawn():
    picture = draw_repair(RUNS, INTERVALS, "mean over 2 seeds")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and (picture < 200).any()
    moved = {**INTERVALS, "S-Random": {**INTERVALS["S-Random"], "heldout": (0.45, 0.1)}}
    assert not np.array_equal(picture, draw_repair(RUNS, moved, "mean over 2 seeds"))


def test_a_right_prediction_has_a_green_frame():
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(2)]
    values = draw.random((2, 16, 16))

    def green(said):
        sheet = draw_before_after(
            pictures, ["star", "cross"], {"before": (values, ["cross", "star"]), "A": (values, said)}
        )
        return int((np.abs(sheet.astype(int) - [0, 158, 115]).max(-1) < 10).sum())

    assert green(["cross", "star"]) == 0
    assert 0 < green(["star", "star"]) < green(["star", "cross"])


def test_negative_relevance_has_its_own_colours():
    pictures = [np.full((16, 16, 3), 128, np.uint8)]
    values = np.linspace(-1, 1, 256).reshape(1, 16, 16)
    signed = draw_before_after(pictures, ["star"], {"before": (values, ["star"])})
    absolute = draw_before_after(pictures, ["star"], {"before": (np.abs(values), ["star"])})
    blue = [int(((sheet[..., 2].astype(int) - sheet[..., 0]) > 60).sum()) for sheet in (signed, absolute)]
    assert blue[0] > blue[1]
