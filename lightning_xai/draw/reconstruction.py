"""What a masked autoencoder was given and what it painted, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_xai.draw.sheet import Sheet, show_image


@dataclass(frozen=True)
class ReconstructionRow:
    """Four pictures uint8 (h, w, 3) of one image, and what stands above the first and the third of them."""

    original: np.ndarray
    visible: np.ndarray
    painted: np.ndarray
    pasted: np.ndarray
    caption: str = ""
    quality: str = ""


def draw_reconstructions(rows: Sequence[ReconstructionRow], title: str = "", panel_size: int = 260) -> np.ndarray:
    """A row for each image: original, visible patches, all as the network paints them, hidden ones painted.

    Returns uint8 (h, w, 3). Raises ValueError where there is no row, or where the pictures are not of one shape.
    """
    shapes = {picture.shape for row in rows for picture in (row.original, row.visible, row.painted, row.pasted)}
    if len(shapes) != 1:
        raise ValueError(f"a sheet shows pictures of one shape, not of {sorted(shapes) or 'none'}")
    (shape,) = shapes
    sheet = Sheet(shape[:2], len(rows), 4, panel_size, title)
    for number, row in enumerate(rows):
        panels = (
            (row.original, row.caption),
            (row.visible, "masked"),
            (row.painted, f"reconstruction {row.quality}".strip()),
            (row.pasted, "reconstruction + visible"),
        )
        for axes, (picture, caption) in zip(sheet.panels[4 * number :], panels, strict=False):
            show_image(axes, picture, caption)
    return sheet.picture()
