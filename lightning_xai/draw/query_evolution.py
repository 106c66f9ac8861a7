"""The module view of a decoder: where its object queries start, how they move by layer, and where they end."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.patheffects import withStroke

from lightning_xai.draw.boxes import class_legend
from lightning_xai.draw.palette import category_colour, layer_colours
from lightning_xai.draw.sheet import Sheet, show_image

_EDGE = [withStroke(linewidth=2.5, foreground="black", alpha=0.6)]


def draw_query_evolution(
    image: np.ndarray,
    references: np.ndarray,
    centres: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    class_names: Sequence[str],
    shown: np.ndarray | None = None,
    title: str = "",
) -> np.ndarray:
    """Reference points by layer, evolution of the predictions, reference to prediction, and the queries at each layer.

    references: (D + 1, Q, 2), centres: (D, Q, 2) in pixels; labels, scores: (D, Q). shown: numbers of the queries whose
    paths are drawn (all by default); the panels of single layers show every query, sized by score.
    """
    depth, count = labels.shape
    shown = np.arange(count) if shown is None else np.asarray(shown)
    columns = 3
    title = f"{title}\nfirst row: {len(shown)} of {count} queries; the panels of single layers: all queries"
    sheet = Sheet(image.shape[:2], 1 + math.ceil(depth / columns), columns, 400, title.strip())
    first, between, whole, *layers = sheet.panels

    show_image(first, image, "reference points before and after each layer")
    colours = layer_colours(depth + 1)
    for layer in range(depth + 1):  # earlier ones are larger, so that later ones do not cover them
        first.scatter(
            *references[layer][shown].T,
            s=60 - 46 * layer / depth,
            color=colours[layer],
            edgecolors="white",
            linewidths=0.6,
            zorder=2,
        )

    show_image(between, image, "predicted centres, layer to layer")
    show_image(whole, image, "initial reference point to final prediction")
    for query in shown:
        colour = category_colour(int(labels[-1, query]))
        for layer in range(depth - 1):
            _arrow(between, centres[layer, query], centres[layer + 1, query], colour)
        _arrow(whole, references[0, query], centres[-1, query], colour)
    between.scatter(*centres[0][shown].T, s=9, color="white", edgecolors="black", linewidths=0.6, zorder=4)
    whole.scatter(*references[0][shown].T, s=9, color="white", edgecolors="black", linewidths=0.6, zorder=4)

    for layer, axes in enumerate(layers[:depth]):
        show_image(axes, image, f"object queries after layer {layer}")
        order = np.argsort(scores[layer], kind="stable")
        kinds = [category_colour(int(label)) for label in labels[layer][order]]
        sizes = 4 + 130 * np.clip(scores[layer][order], 0, 1)
        axes.scatter(
            *centres[layer][order].T, s=sizes, c=kinds, edgecolors="black", linewidths=0.5, alpha=0.9, zorder=2
        )
    for axes in layers[depth:]:
        axes.set_axis_off()

    dot = {"marker": "o", "linestyle": "none"}
    marks = class_legend(labels.ravel(), class_names, most=6)
    marks += [
        Line2D([], [], color=colours[0], markeredgecolor="white", label="initial reference", **dot),
        Line2D([], [], color=colours[-1], markeredgecolor="white", label=f"reference after layer {depth - 1}", **dot),
        Line2D([], [], color="white", markeredgecolor="black", markersize=5, label="where arrows start", **dot),
        Line2D([], [], color="#808080", markeredgecolor="black", markersize=10, label="query of score 0.9", **dot),
        Line2D([], [], color="#808080", markeredgecolor="black", markersize=3, label="query of score 0.1", **dot),
    ]
    sheet.legend(marks)
    return sheet.picture()


def _arrow(axes: Axes, start: np.ndarray, end: np.ndarray, colour: str) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "mutation_scale": 7, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, path_effects=_EDGE, zorder=3, **style))
