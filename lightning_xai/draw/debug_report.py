"""What a repair did: numbers of every strategy with their intervals, and maps of the same pictures before and after."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lightning_xai.draw.palette import LINES, heat_colours, relevance_colours, relevance_scale
from lightning_xai.draw.sheet import DPI, SMALL, TEXT, Sheet, fit_text, show_image

_BEFORE, _AFTER, _RIGHT = "#555555", LINES[0], LINES[2]
_NAMES = {
    "test": "accuracy, original test set",
    "heldout": "accuracy, held-out set",
    "repaired": "repaired, of former failures",
    "broken": "broken, of former hits",
    "energy": "relevance on the true object",
}


def draw_repair(
    runs: Mapping[str, Mapping[str, Sequence[float]]],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]],
    note: str = "",
) -> np.ndarray:
    """A panel for each number, a line for each strategy: a dot a seed, the mean with its interval.

    runs[strategy][column]: shares, one a seed; the first strategy is the state before, drawn through all lines.
    intervals: mean and half width (NaN for none) of each; what of an interval is below 0 or above 1, where no share
    can be, is cut off. Returns uint8 (h, w, 3).
    """
    known = dict.fromkeys(column for of in runs.values() for column in of)
    columns = [column for column in _NAMES if column in known] + [column for column in known if column not in _NAMES]
    names = list(runs)
    width, height = 150 + 250 * len(columns), 120 + 34 * len(names)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axes, column in zip(panels, columns, strict=True):
        _panel(axes, column, names, runs, intervals)
    panels[0].set_yticks(range(len(names)), names, fontsize=TEXT)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    if note:
        fit_text(figure.supxlabel(note, fontsize=SMALL, color="#333333"), width - 20)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _panel(axes: Axes, column: str, names: Sequence[str], runs, intervals) -> None:
    largest = 0.0
    for line, name in enumerate(names):
        if column not in runs[name]:
            continue
        colour = _BEFORE if line == 0 else _AFTER
        mean, half = intervals[name][column]
        values = [value for value in runs[name][column] if not math.isnan(value)]
        largest = max([largest, *values])
        # the seeds below the interval, which would hide them
        axes.plot(values, [line + 0.26] * len(values), "o", color=colour, markersize=3.5, markeredgewidth=0)
        if not math.isnan(half):
            axes.plot([max(mean - half, 0), min(mean + half, 1)], [line, line], color=colour, linewidth=2.2)
            largest = max(largest, min(mean + half, 1))
        axes.plot([mean], [line], "d", color=colour, markersize=7)
        if line == 0:
            axes.axvline(mean, color=_BEFORE, linewidth=0.8, linestyle=":")
    axes.set_title(_NAMES.get(column, column), fontsize=TEXT, loc="left")
    axes.set_xlim(0, 1.02 if largest > 0.25 else max(1.15 * largest, 0.02))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0 if largest > 0.05 else 1))
    axes.tick_params(labelsize=SMALL, left=False)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_before_after(
    pictures: Sequence[np.ndarray],
    labels: Sequence[str],
    maps: Mapping[str, tuple[np.ndarray, Sequence[str]]],
    title: str = "relevance of the predicted class",
) -> np.ndarray:
    """A row a picture: the picture, then for each classifier where it looks and what it says.

    pictures: n of uint8 (h, w, 3), labels their true classes. maps: by the classifier's name, relevance (n, h, w) and n
    predicted classes. The scale is said in the title: a bar beside one row of pictures has room for a word only.
    """
    signed = any((relevance_scale(panel) < 0).any() for values, _ in maps.values() for panel in values)
    scale = "divided by the largest absolute value" if signed else "from the least to the largest"
    title = f"{title}, {scale} of each panel; a right prediction has a green frame"
    sheet = Sheet(pictures[0].shape[:2], len(pictures), 1 + len(maps), 170, title, bar=True)
    for row, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        panels = sheet.panels[row * (1 + len(maps)) :]
        show_image(panels[0], picture, f"true: {label}")
        for axes, (name, (values, said)) in zip(panels[1:], maps.items(), strict=False):
            caption = f"{name}\n{said[row]}" if row == 0 else said[row]
            _map(axes, picture, relevance_scale(values[row], from_zero=signed), caption, said[row] == label)
    sheet.colour_bar(relevance_colours() if signed else heat_colours(), 1.0, "relevance", least=-1.0 if signed else 0.0)
    return sheet.picture()


def _map(axes: Axes, picture: np.ndarray, scaled: np.ndarray, caption: str, right: bool) -> None:
    show_image(axes, picture, caption, faded=True)
    h, w = picture.shape[:2]
    colours = {"vmin": -1, "vmax": 1, "interpolation": "bilinear", "aspect": "auto"}
    axes.imshow(scaled, relevance_colours(), extent=(0, w, h, 0), **colours)
    axes.set(xlim=(0, w), ylim=(h, 0))
    for side in axes.spines.values():
        side.set(visible=right, color=_RIGHT, linewidth=3)
