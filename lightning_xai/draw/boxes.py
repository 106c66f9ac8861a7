"""Boxes with names over a picture; the names cover neither each other nor leave the picture."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from lightning_xai.draw.palette import TRUTH, category_colour, name_of
from lightning_xai.draw.sheet import SMALL, Sheet, add_caption, show_image


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    scores: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    title: str = "",
) -> np.ndarray:
    """A picture with its boxes (N, 4) xyxy in pixels, named by class and score, over dashed ground truth (G, 4)."""
    sheet = Sheet(image.shape[:2], title=title)
    (axes,) = sheet.panels
    show_image(axes, image)
    if truth is not None:
        for box in truth:
            add_box(axes, box, TRUTH, linestyle=(0, (4, 3)), linewidth=1.5)
    hidden = add_named_boxes(axes, boxes, labels, class_names, scores)
    kinds = class_legend(labels, class_names)
    if truth is not None:
        kinds.append(Line2D([], [], color=TRUTH, linestyle=(0, (4, 3)), label="ground truth"))
    if kinds:
        sheet.legend(kinds)
    count = f"{len(boxes)} boxes" + (f", {hidden} without room for a name" if hidden else "")
    add_caption(axes, count)
    return sheet.picture()


def class_legend(labels: np.ndarray, class_names: Sequence[str], most: int = 8) -> list[Line2D]:
    """One line a class that occurs; of many, the most frequent."""
    kinds, counts = np.unique(np.asarray(labels, dtype=int), return_counts=True)
    kept = sorted(kinds[np.argsort(-counts, kind="stable")][:most].tolist())
    lines = [Line2D([], [], color=category_colour(k), linewidth=3, label=name_of(k, class_names)) for k in kept]
    if len(kinds) > most:
        lines.append(Line2D([], [], color="none", label=f"and {len(kinds) - most} more classes"))
    return lines


def add_box(axes: Axes, box: Sequence[float], colour: str, **style) -> None:
    x0, y0, x1, y1 = (float(v) for v in box)
    style = {"linewidth": 2, "fill": False, "edgecolor": colour, **style}
    style["path_effects"] = [withStroke(linewidth=style["linewidth"] + 1.5, foreground="black", alpha=0.55)]
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **style))


def add_named_boxes(
    axes: Axes,
    boxes: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    scores: np.ndarray | None = None,
) -> int:
    """Draw boxes and, most confident first, their names; returns how many names found no free place."""
    order = np.arange(len(boxes)) if scores is None else np.argsort(-np.asarray(scores), kind="stable")
    for i in order[::-1]:
        add_box(axes, boxes[i], category_colour(int(labels[i])))
    names = []
    for i in order:
        text = name_of(int(labels[i]), class_names) + ("" if scores is None else f" {scores[i]:.2f}")
        names.append((boxes[i], text, category_colour(int(labels[i]))))
    return add_names(axes, names)


def add_names(axes: Axes, names: Sequence[tuple[Sequence[float], str, str]]) -> int:
    """Write a (box, text, colour) name at each box where it is free; returns how many found no place."""
    renderer = axes.figure.canvas.get_renderer()
    pixels = axes.transData
    panel = axes.get_window_extent(renderer)
    taken: list[tuple[float, float, float, float]] = []
    hidden = 0
    for box, text, colour in names:
        label = axes.text(
            0,
            0,
            text,
            fontsize=SMALL,
            color="black",
            va="bottom",
            ha="left",
            transform=None,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.2, "alpha": 0.92},
        )
        extent = label.get_window_extent(renderer)
        size = (extent.width + 4, extent.height + 4)
        (left, top), (right, bottom) = pixels.transform([(box[0], box[1]), (box[2], box[3])])
        place = _free_place((left, bottom, right, top), size, panel.extents, taken)
        if place is None:
            label.remove()
            hidden += 1
            continue
        taken.append((*place, place[0] + size[0], place[1] + size[1]))
        # In shares of the panel, which the sheet may still move.
        label.set_transform(axes.transAxes)
        label.set_position(axes.transAxes.inverted().transform((place[0] + 2, place[1] + 2)))
    return hidden


def _free_place(box, size, panel, taken) -> tuple[float, float] | None:
    """The lower left corner, in canvas pixels (y upwards), of a free place at the box; None when there is none."""
    left, bottom, right, top = box
    width, height = size
    columns = [left, right - width, (left + right - width) / 2]
    rows = [top, top - height, bottom - height, bottom]
    step = height + 1
    rows += [top - k * step for k in range(2, int((top - bottom) // step) + 1)]
    if width > panel[2] - panel[0]:
        return None
    for y in rows:
        y = min(max(y, panel[1]), panel[3] - height)
        for x in columns:
            x = min(max(x, panel[0]), panel[2] - width)
            if all(x >= t[2] or x + width <= t[0] or y >= t[3] or y + height <= t[1] for t in taken):
                return x, y
    return None
