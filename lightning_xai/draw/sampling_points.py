"""Sampling points of deformable attention over a picture, coloured and sized by weight."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from lightning_xai.draw.boxes import add_box
from lightning_xai.draw.palette import WEIGHTS
from lightning_xai.draw.sheet import SMALL, Sheet, fit_text, show_image

_BOX = "#FFFFFF"
_REFERENCE_BOX = "#56B4E9"
_HALO = [withStroke(linewidth=3.5, foreground="black", alpha=0.7)]


@dataclass(frozen=True)
class PointPanel:
    """One panel: xy (N, 2) in pixels of the picture, weights (N,), reference (2,); boxes xyxy in pixels, or none.

    box: what the query finally predicts. reference_box: where references are boxes, the one the samples are placed by.
    """

    xy: np.ndarray
    weights: np.ndarray
    reference: np.ndarray
    box: np.ndarray | None = None
    reference_box: np.ndarray | None = None
    caption: str = ""


def weight_colours(weights: np.ndarray, largest: float | None = None, saturated: bool = False) -> np.ndarray:
    """The viridis colours (N, 4) of weight / largest, the largest weight by default.

    saturated: as the thesis draws them, with the 100 colours of viridis called by the number 100 * weight, so that
    every weight of 0.01 or more gets the top colour.
    """
    weights = np.asarray(weights)
    if saturated:
        return WEIGHTS.resampled(100)(100 * weights)
    largest = float(weights.max(initial=0.0)) if largest is None else largest
    return WEIGHTS(weights / largest if largest > 0 else np.zeros_like(weights))


def draw_sampling_points(
    image: np.ndarray,
    panels: Sequence[PointPanel],
    columns: int = 1,
    title: str = "",
    panel_size: int | None = None,
    saturated: bool = False,
    zoom: bool = False,
) -> np.ndarray:
    """One or several panels of sampling points, all on one scale of weights.

    The reference point is a white cross, the predicted box white, a reference box blue and dashed.
    zoom: show only the surroundings in which the points lie, the same in all panels.
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = panel_size or {1: 720, 2: 480, 3: 400}.get(columns, 200)
    view = surroundings(image.shape[:2], panels) if zoom else (0, 0, image.shape[1], image.shape[0])
    shape = (view[3] - view[1], view[2] - view[0])
    sheet = Sheet(shape, rows, columns, size, title, bar=True)
    largest = max((float(p.weights.max(initial=0.0)) for p in panels), default=0.0) or 1.0
    for axes, panel in zip(sheet.panels, panels, strict=False):
        show_image(axes, image, panel.caption)
        axes.set(xlim=(view[0], view[2]), ylim=(view[3], view[1]))
        add_points(axes, panel, largest, scale=size / 720, saturated=saturated)
    for axes in sheet.panels[len(panels) :]:
        axes.set_axis_off()
    sheet.colour_bar(WEIGHTS, largest, "attention weight of a sample")
    sheet.legend(_legend(panels))
    return sheet.picture()


def add_points(axes: Axes, panel: PointPanel, largest: float, scale: float = 1.0, saturated: bool = False) -> None:
    """Draw one panel's boxes, samples (the heaviest on top) and reference point."""
    line = max(1.0, 2 * scale)
    if panel.reference_box is not None:
        add_box(axes, panel.reference_box, _REFERENCE_BOX, linestyle=(0, (4, 3)), linewidth=line)
    if panel.box is not None:
        add_box(axes, panel.box, _BOX, linewidth=line)
    order = np.argsort(panel.weights, kind="stable")
    weights = np.asarray(panel.weights)[order]
    axes.scatter(
        *np.asarray(panel.xy)[order].T,
        s=(14 + 110 * weights / largest) * max(scale, 0.45),
        c=weight_colours(weights, largest, saturated),
        edgecolors="white",
        linewidths=0.7 * max(scale, 0.5),
        zorder=3,
    )
    axes.plot(
        *np.asarray(panel.reference).reshape(2, 1),
        marker="x",
        markersize=max(7, 11 * scale),
        markeredgewidth=max(1.5, 2.5 * scale),
        color="white",
        path_effects=_HALO,
        zorder=4,
    )
    inside = _inside(axes, panel.xy)
    total = float(np.sum(panel.weights))
    lost = float(np.asarray(panel.weights)[~inside].sum()) / total if total > 0 else 0.0
    if not inside.all() and (scale > 0.5 or lost > 0.01):
        note = f"{int((~inside).sum())} of {len(inside)} samples ({lost:.0%} of the weight) lie outside"
        if scale <= 0.5:
            note = f"{lost:.0%} of it outside"
        style = {"color": "white", "path_effects": _HALO, "fontsize": SMALL}
        text = axes.text(0.01, 0.01, note, transform=axes.transAxes, zorder=5, **style)
        fit_text(text, 0.98 * axes.get_window_extent().width)


def surroundings(shape: tuple[int, int], panels: Sequence[PointPanel]) -> tuple[float, float, float, float]:
    """The part x0, y0, x1, y1 of a picture with boxes, references and all samples but the lightest, and a margin.

    The lightest are those below a twentieth of the largest weight.
    """
    h, w = shape
    largest = max(float(np.max(p.weights, initial=0.0)) for p in panels)
    heavy = [np.asarray(p.xy)[np.asarray(p.weights) >= largest / 20] for p in panels]
    points = np.concatenate(heavy + [np.reshape(p.reference, (1, 2)) for p in panels]).clip(0, (w, h))
    low, high = points.min(0), points.max(0)
    for panel in panels:
        for box in (panel.box, panel.reference_box):
            if box is not None:
                x0, y0, x1, y1 = np.clip(box, 0, (w, h, w, h))
                low, high = np.minimum(low, (x0, y0)), np.maximum(high, (x1, y1))
    centre = (low + high) / 2
    half = np.maximum((high - low).max() * 0.6, 0.08 * max(h, w))
    low = np.clip(centre - half, 0, (w, h))
    high = np.clip(centre + half, 0, (w, h))
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _inside(axes: Axes, xy: np.ndarray) -> np.ndarray:
    (x0, x1), (y1, y0) = axes.get_xlim(), axes.get_ylim()
    x, y = np.asarray(xy).T
    return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)


def _legend(panels: Sequence[PointPanel]) -> list[Line2D]:
    style = {"linestyle": "none", "markeredgecolor": "white"}
    marks = [
        Line2D([], [], marker="o", markersize=10, color=WEIGHTS(1.0), label="sample, heaviest", **style),
        Line2D([], [], marker="o", markersize=4, color=WEIGHTS(0.0), label="sample, lightest", **style),
        Line2D(
            [],
            [],
            marker="x",
            markersize=9,
            color="white",
            markeredgewidth=2.5,
            linestyle="none",
            label="reference point",
        ),
    ]
    marks[-1].set_path_effects(_HALO)
    if any(p.box is not None for p in panels):
        marks.append(Line2D([], [], color=_BOX, linewidth=2.5, path_effects=_HALO, label="predicted box"))
    if any(p.reference_box is not None for p in panels):
        line = {"color": _REFERENCE_BOX, "linewidth": 2.5, "linestyle": (0, (4, 3))}
        marks.append(Line2D([], [], label="reference box", **line))
    return marks
