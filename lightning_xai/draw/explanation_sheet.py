"""What a network saw, what it said, and why by each of several methods, side by side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lightning_xai.draw.boxes import add_box, add_names
from lightning_xai.draw.palette import CATEGORIES, TRUTH, heat_colours, relevance_colours, relevance_scale
from lightning_xai.draw.sheet import TEXT, Sheet, fit_text, show_image
from lightning_xai.draw.words import WordLine, draw_words

_TARGET, _OTHERS = CATEGORIES[1], "#D0D0D0"
_DASHED = (0, (4, 3))
_MAPS = 5  # at most so many beside each other


@dataclass(frozen=True)
class ExplainedTarget:
    """One target and what the methods say about it.

    name: e.g. "query 12: heart 0.93". maps: relevance (h, w) by method, on the picture's pixels or on a coarser grid
    that covers the whole picture. words: (piece, relevance) of its text by method. box: of the predicted object,
    truth: of the annotated object it stands for, (4,) xyxy in pixels.
    """

    name: str
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    words: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    box: np.ndarray | None = None
    truth: np.ndarray | None = None


def draw_explanations(
    image: np.ndarray,
    targets: Sequence[ExplainedTarget],
    lines: Sequence[str] = (),
    boxes: np.ndarray | None = None,
    labels: Sequence[str] = (),
    truth: np.ndarray | None = None,
    caption: str = "input",
    title: str = "",
) -> np.ndarray:
    """A row a target: input | prediction | one map a method, and below it the texts with coloured words.

    image: uint8 (h, w, 3). lines: the prediction in words. boxes (N, 4) xyxy in pixels with labels: the prediction as
    boxes. truth: (G, 4), annotated objects. Every map has its own scale; its range stands above it. Without a target
    the sheet shows input and prediction.
    """
    methods = list(dict.fromkeys(method for target in targets for method in target.maps))
    deep = max(1, math.ceil(len(methods) / _MAPS))  # lines of panels that one target takes
    columns = 2 + math.ceil(len(methods) / deep)
    rows = targets or [ExplainedTarget("")]
    size = 320 if columns > 3 else 400
    sheet = Sheet(image.shape[:2], deep * len(rows), columns, size, title, bar=bool(methods))
    signed = False
    for number, target in enumerate(rows):
        panels = sheet.panels[number * deep * columns : (number + 1) * deep * columns]
        said, shown = panels[:2]
        mapped = [axes for place, axes in enumerate(panels) if place % columns >= 2]
        for place in range(columns, len(panels), columns):  # below input and prediction
            panels[place].set_axis_off()
            panels[place + 1].set_axis_off()
        show_image(said, image, caption)
        for box in () if truth is None else truth:
            add_box(said, box, TRUTH, linestyle=_DASHED, linewidth=1)
        if target.truth is not None:
            add_box(said, target.truth, TRUTH, linestyle=_DASHED, linewidth=2.5)
        _show_prediction(sheet, shown, image, target, lines, boxes, labels)
        for axes, method in zip(mapped, methods, strict=False):
            if method in target.maps:
                signed |= _show_map(axes, image, target.maps[method], method)
                if target.box is not None:
                    add_box(axes, target.box, _TARGET, linewidth=1.5)
            else:
                axes.set_axis_off()
        for axes in mapped[len(methods) :]:
            axes.set_axis_off()
    if methods:
        if signed:
            sheet.colour_bar(relevance_colours(), 1.0, "relevance / largest of the panel", least=-1.0)
        else:
            sheet.colour_bar(heat_colours(), 1.0, "relevance, least to largest of the panel")
    sheet.legend(_marks(targets, boxes, truth))
    return _with_texts(sheet.picture(), targets)


def _show_prediction(sheet: Sheet, axes: Axes, image, target: ExplainedTarget, lines, boxes, labels) -> None:
    name = target.name or "prediction"
    if boxes is not None and not len(boxes):
        name = "; ".join([name, *lines])
    if boxes is None:
        h, w = image.shape[:2]
        show_image(axes, np.full((h, w, 3), 255, np.uint8), name)
        said = "\n".join(lines) or target.name
        written = axes.text(0.04 * w, 0.04 * h, said, va="top", size=TEXT, linespacing=1.7)
        fit_text(written, 0.92 * sheet.panel_size[0])
        return
    show_image(axes, image, name)
    for box in boxes:
        add_box(axes, box, _OTHERS, linewidth=1)
    named = [(box, label, _OTHERS) for box, label in zip(boxes, labels, strict=True)]
    if target.box is not None:
        add_box(axes, target.box, _TARGET, linewidth=2.5)
        same = [np.allclose(box, target.box, atol=0.5) for box, _, _ in named]
        named = [(b, t, _TARGET if own else c) for (b, t, c), own in zip(named, same, strict=True)]
        named.sort(key=lambda each: each[2] != _TARGET)  # the target's name finds its place first
    add_names(axes, named)


def _show_map(axes: Axes, image: np.ndarray, relevance: np.ndarray, method: str) -> bool:
    """Lay a map over the greyed picture; whether it has negative values that count."""
    if not np.isfinite(relevance).all():
        show_image(axes, image, f"{method}  (not finite)", faded=True)
        return False
    scaled = relevance_scale(relevance)
    show_image(axes, image, f"{method}  ({_range(relevance, scaled)})", faded=True)
    h, w = image.shape[:2]
    axes.imshow(
        scaled, relevance_colours(), vmin=-1, vmax=1, extent=(0, w, h, 0), interpolation="bilinear", aspect="auto"
    )
    axes.set(xlim=(0, w), ylim=(h, 0))
    return bool(scaled.min() < 0)


def _range(relevance: np.ndarray, scaled: np.ndarray) -> str:
    """From where to where relevance goes, with as many digits as tell the two apart."""
    low, high = float(relevance.min()), float(relevance.max())
    if not scaled.any():
        return f"{high:.2g} everywhere"
    for digits in range(2, 9):
        ends = f"{low:.{digits}g}", f"{high:.{digits}g}"
        if ends[0] != ends[1]:
            break
    return " to ".join(ends)


def _marks(targets: Sequence[ExplainedTarget], boxes, truth) -> list[Line2D]:
    marks = []
    if any(target.box is not None for target in targets):
        marks.append(Line2D([], [], color=_TARGET, linewidth=2.5, label="box of what is explained"))
    if boxes is not None and len(boxes):
        marks.append(Line2D([], [], color=_OTHERS, linewidth=2, label="other predictions"))
    if truth is not None and len(truth):
        marks.append(Line2D([], [], color=TRUTH, linestyle=_DASHED, linewidth=2, label="annotated"))
    return marks


def _with_texts(picture: np.ndarray, targets: Sequence[ExplainedTarget]) -> np.ndarray:
    """The sheet with the coloured texts of its targets below."""
    parts = [picture]
    for target in targets:
        if target.words:
            lines = [WordLine(method, pieces) for method, pieces in target.words.items()]
            parts.append(draw_words(lines, picture.shape[1], target.name))
    return np.concatenate(parts)
