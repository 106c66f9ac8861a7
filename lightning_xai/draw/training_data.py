"""What the network is trained on: images with their boxes, before and after augmentation, and where boxes lie."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_xai.draw.boxes import add_named_boxes, class_legend
from lightning_xai.draw.palette import heat_colours
from lightning_xai.draw.sheet import Sheet, add_caption, show_image


@dataclass(frozen=True)
class LabelledImage:
    """An image uint8 (h, w, 3) with its boxes (N, 4) xyxy in pixels and labels (N,)."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    caption: str = ""


def draw_training_data(
    rows: Sequence[Sequence[LabelledImage]], class_names: Sequence[str], title: str = "", panel_size: int = 420
) -> np.ndarray:
    """A grid of labelled images: one row an image, e.g. as stored and then as augmented once or several times.

    Every image is scaled to fit a panel of the same size, so panels of one row compare by content, not by scale.
    """
    columns = max(len(row) for row in rows)
    # Panels get the widest shape that occurs least distorted: the median ratio of all images.
    ratio = float(np.median([item.image.shape[0] / item.image.shape[1] for row in rows for item in row]))
    shape = (1000 * min(1.0, ratio), 1000 * min(1.0, 1 / ratio))
    labels = np.concatenate([item.labels for row in rows for item in row])
    sheet = Sheet((round(shape[0]), round(shape[1])), len(rows), columns, panel_size, title)
    for index, axes in enumerate(sheet.panels):
        row, column = divmod(index, columns)
        if column >= len(rows[row]):
            axes.set_axis_off()
            continue
        item = rows[row][column]
        h, w = item.image.shape[:2]
        show_image(axes, item.image, f"{item.caption}  {w} × {h}, {len(item.boxes)} boxes".strip())
        _fit(axes, (h, w), sheet.panel_size)
        add_named_boxes(axes, item.boxes, item.labels, class_names)
    legend = class_legend(labels, class_names)
    if legend:
        sheet.legend(legend)
    return sheet.picture()


def _fit(axes, shape: tuple[int, int], panel: tuple[int, int]) -> None:
    """Show a whole image of another shape than the panel's, with empty room at its right or below."""
    h, w = shape
    scale = min(panel[0] / w, panel[1] / h)
    axes.set(xlim=(0, panel[0] / scale), ylim=(panel[1] / scale, 0))


def box_density(
    boxes: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], cells: int = 64, as_thesis: bool = False
) -> np.ndarray:
    """Where boxes lie in the images: a map (cells, cells), normalised to a largest value of 1.

    boxes: (N, 4) xyxy in pixels for each image; sizes: (h, w) of each. A box adds a Gaussian in coordinates relative to
    its image, with half the box's width and height as standard deviations. as_thesis: with them as variances, as the
    visualisation thesis has it, which blurs boxes far beyond their size.
    """
    at = (np.arange(cells) + 0.5) / cells
    density = np.zeros((cells, cells))
    for image_boxes, (height, width) in zip(boxes, sizes, strict=True):
        relative = np.asarray(image_boxes, dtype=np.float64).reshape(-1, 4) / (width, height, width, height)
        for x0, y0, x1, y1 in relative:
            if x1 <= x0 or y1 <= y0:
                continue
            halves = (x1 - x0) / 2, (y1 - y0) / 2
            x_variance, y_variance = halves if as_thesis else (halves[0] ** 2, halves[1] ** 2)
            along_x = np.exp(-((at - (x0 + x1) / 2) ** 2) / (2 * x_variance))
            along_y = np.exp(-((at - (y0 + y1) / 2) ** 2) / (2 * y_variance))
            density += np.outer(along_y, along_x) / math.sqrt(x_variance * y_variance)
    return density / density.max() if density.max() > 0 else density


def draw_box_density(density: np.ndarray, count: int, title: str = "") -> np.ndarray:
    """A map of box density over the unit square; count: how many boxes went into it."""
    sheet = Sheet((1, 1), panel=512, title=title, bar=True)
    (axes,) = sheet.panels
    axes.imshow(density, heat_colours(), vmin=0, vmax=1, extent=(0, 1, 1, 0), interpolation="bilinear")
    axes.set(xticks=[], yticks=[])
    add_caption(axes, f"{count} boxes, positions relative to their image")
    sheet.colour_bar(heat_colours(), 1.0, "density of boxes / largest")
    return sheet.picture()
