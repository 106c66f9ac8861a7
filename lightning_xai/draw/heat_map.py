"""Heat maps of attention laid over a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from lightning_xai.draw.boxes import add_box
from lightning_xai.draw.palette import heat_colours
from lightning_xai.draw.sheet import Sheet, show_image

_BOX = "#56B4E9"
_HALO = [withStroke(linewidth=3.5, foreground="black", alpha=0.7)]


@dataclass(frozen=True)
class HeatPanel:
    """One panel: a map (h, w), not negative; extent: width and height, in pixels of the picture, that it covers."""

    heat: np.ndarray
    extent: tuple[float, float]
    caption: str = ""


def draw_heat_maps(
    image: np.ndarray,
    panels: Sequence[HeatPanel],
    columns: int = 1,
    title: str = "",
    box: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    unit: str = "weight per cell / largest of the panel",
    panel_size: int | None = None,
) -> np.ndarray:
    """Maps over the greyed picture; each panel has its own scale, whose largest value its caption tells."""
    columns = min(columns, len(panels))
    size = panel_size or {1: 720, 2: 480, 3: 400}.get(columns, 300)
    sheet = Sheet(image.shape[:2], math.ceil(len(panels) / columns), columns, size, title, bar=True)
    colours = heat_colours()
    for axes, panel in zip(sheet.panels, panels, strict=False):
        largest = float(panel.heat.max())
        show_image(axes, image, f"{panel.caption}  (largest {largest:.3g})".strip(), faded=True)
        limits = axes.get_xlim(), axes.get_ylim()
        width, height = panel.extent
        scaled = panel.heat / largest if largest > 0 else panel.heat
        axes.imshow(
            scaled, colours, vmin=0, vmax=1, extent=(0, width, height, 0), interpolation="hanning", aspect="auto"
        )
        axes.set(xlim=limits[0], ylim=limits[1])
        if box is not None:
            add_box(axes, box, _BOX, linewidth=1.5)
        if reference is not None:
            axes.plot(*np.reshape(reference, (2, 1)), "x", color="white", markersize=9, mew=2, path_effects=_HALO)
    for axes in sheet.panels[len(panels) :]:
        axes.set_axis_off()
    sheet.colour_bar(colours, 1.0, unit)
    marks = []
    if box is not None:
        marks.append(Line2D([], [], color=_BOX, linewidth=2.5, path_effects=_HALO, label="predicted box"))
    if reference is not None:
        cross = {"marker": "x", "color": "white", "markersize": 9, "markeredgewidth": 2.5, "linestyle": "none"}
        marks.append(Line2D([], [], label="reference point", path_effects=_HALO, **cross))
    if marks:
        sheet.legend(marks)
    return sheet.picture()
