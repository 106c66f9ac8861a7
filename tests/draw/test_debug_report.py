import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from lightning_xai.draw.debug_report import _panel, draw_before_after, draw_repair
from lightning_xai.draw.sheet import Sheet

RUNS = {
    "before": {"test": [0.9, 0.95], "heldout": [0.3, 0.4]},
    "S-Random": {"test": [0.9, 0.95], "heldout": [0.6, 0.7], "repaired": [0.5, math.nan]},
}
INTERVALS = {
    "before": {"test": (0.92, 0.1), "heldout": (0.35, 0.2)},
    "S-Random": {"test": (0.92, 0.1), "heldout": (0.65, 0.2), "repaired": (0.5, math.nan)},
}


@pytest.fixture
def sheets(monkeypatch):
    """The sheets whose pictures are made."""
    made, picture = [], Sheet.picture
    monkeypatch.setattr(Sheet, "picture", lambda sheet: made.append(sheet) or picture(sheet))
    return made


def test_the_numbers_of_every_strategy_are_drawn():
    picture = draw_repair(RUNS, INTERVALS, "mean over 2 seeds")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and (picture < 200).any()
    moved = {**INTERVALS, "S-Random": {**INTERVALS["S-Random"], "heldout": (0.45, 0.1)}}
    assert not np.array_equal(picture, draw_repair(RUNS, moved, "mean over 2 seeds"))


@pytest.mark.parametrize("columns", [["test"], ["test", "heldout", "repaired"]])
def test_a_long_note_is_not_cut_off(columns):
    runs, intervals = ({n: {c: of[c] for c in columns if c in of} for n, of in d.items()} for d in (RUNS, INTERVALS))
    picture = draw_repair(runs, intervals, "a long note of what these numbers are and were " * 6)
    assert (picture[:, :3] == 255).all() and (picture[:, -3:] == 255).all()


@pytest.mark.parametrize(("mean", "half", "ends"), [(0.9, 0.3, (0.6, 1.0)), (0.01, 0.02, (0.0, 0.03))])
def test_an_interval_is_drawn_up_to_what_a_share_can_be(mean, half, ends):
    axes = Figure().subplots()
    _panel(axes, "broken", ["before"], {"before": {"broken": [mean]}}, {"before": {"broken": (mean, half)}})
    drawn = next(line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2)
    assert tuple(drawn) == pytest.approx(ends)
    assert axes.get_xlim()[0] <= drawn[0] and drawn[1] < axes.get_xlim()[1]


@pytest.mark.parametrize("least", [0.0, -1.0])
def test_the_colour_bar_s_label_is_not_cut_off(sheets, least):
    values = np.linspace(least, 1, 256).reshape(1, 16, 16)
    draw_before_after([np.full((16, 16, 3), 128, np.uint8)], ["star"], {"before": (values, ["star"])})
    (sheet,) = sheets
    for text in (sheet._bar.yaxis.label, sheet._title):
        box = text.get_window_extent()
        assert min(box.x0, box.y0) >= 0 and box.x1 <= sheet.width and box.y1 <= sheet.height


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


def test_all_panels_have_the_scale_that_the_title_says(sheets):
    """Beside a map with negative relevance, one without is not stretched from its least to its largest."""
    signed = np.linspace(-1, 1, 256).reshape(1, 16, 16)
    picture = [np.full((16, 16, 3), 128, np.uint8)]
    draw_before_after(picture, ["star"], {"a": (signed, ["star"]), "b": (signed + 3, ["star"])})
    draw_before_after(picture, ["star"], {"b": (signed + 3, ["star"])})
    mixed, alone = ([axes.images[-1].get_array() for axes in sheet.panels[1:]] for sheet in sheets)
    assert (mixed[0].min(), mixed[0].max()) == (-1, 1)
    assert (mixed[1].min(), mixed[1].max()) == (0.5, 1) and (alone[0].min(), alone[0].max()) == (0, 1)
    assert "absolute value" in sheets[0]._title.get_text() and "least" in sheets[1]._title.get_text()
