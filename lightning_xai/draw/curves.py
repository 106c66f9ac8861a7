"""Curves of training runs against epochs."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lightning_xai.draw.palette import LINES
from lightning_xai.draw.sheet import DPI, SMALL, TEXT
from lightning_xai.draw.training_log import fields, series

DEFAULT_FIELDS = ("AP", "AP50", "loss", "class_error", "loss_bbox_unscaled", "loss_giou_unscaled")
_NAMES = {
    "AP": "AP (IoU 0.50:0.95)",
    "AP50": "AP50 (IoU 0.50)",
    "AP75": "AP75 (IoU 0.75)",
    "loss": "total loss",
    "class_error": "class error of matched queries, %",
}


def draw_curves(
    logs: Mapping[str, Sequence[dict]], names: Sequence[str] = DEFAULT_FIELDS, com: float = 0.0, title: str = ""
) -> np.ndarray:
    """One panel a field, one colour a run, training solid and test dashed.

    logs: by the run's name, its epochs as `read_training_log` gives them. com: smoothing, 0 for none.
    Raises ValueError when none of the fields is in any log.
    """
    curves = {name: {run: series(list(log), name, com) for run, log in logs.items()} for name in names}
    shown = [name for name in names if any(curves[name].values())]
    if not shown:
        available = sorted({field for log in logs.values() for field in fields(list(log))})
        raise ValueError(f"no log holds {', '.join(names)}; there are {', '.join(available)}")
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    size = (max(640, 400 * columns) / DPI, (300 * rows + 26 * (1 + len(logs) // 4) + (30 if title else 0)) / DPI)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, name in zip(panels, shown, strict=False):
        for index, run in enumerate(logs):
            for curve in curves[name][run]:
                style = "-" if curve.split == "train" else "--"
                marker = "o" if len(curve.epochs) == 1 else None
                axes.plot(
                    curve.epochs, curve.values, style, marker=marker, color=LINES[index % len(LINES)], linewidth=1.8
                )
        axes.set_title(_NAMES.get(name, name.replace("_", " ")), fontsize=TEXT, loc="left")
        axes.set_xlabel("epoch", fontsize=SMALL + 0.5)
        axes.tick_params(labelsize=SMALL)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#DDDDDD", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        if name.startswith(("AP", "AR")):
            axes.set_ylim(bottom=0)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], color=LINES[i % len(LINES)], linewidth=3, label=run) for i, run in enumerate(logs)]
    handles += [Line2D([], [], color="#555555", linestyle=s, label=n) for s, n in (("-", "training"), ("--", "test"))]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=SMALL + 0.5, frameon=False
    )
    if title:
        figure.suptitle(title, fontsize=TEXT + 2, x=0.01, ha="left")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
