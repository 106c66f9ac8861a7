"""A sheet of equal picture panels with captions, a legend and a colour bar, drawn without window or global state."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

DPI = 100
TEXT, SMALL = 10, 8.5  # points
_LINE = 22  # pixels that a line of text takes
_GAP, _MARGIN, _BAR = 10, 14, 92


class Sheet:
    """A grid of rows × columns panels that all show a picture of the same shape.

    shape: (h, w) of that picture. panel: length in pixels of a panel's longer side. captions: lines above each panel.
    bar: whether room for a colour bar is kept at the right; legend: lines kept below for a legend.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        rows: int = 1,
        columns: int = 1,
        panel: int = 720,
        title: str = "",
        captions: int = 1,
        bar: bool = False,
        legend: int = 0,
    ):
        h, w = shape
        # A very long picture still gets a panel that captions fit on.
        width, height = (max(160, round(panel * side / max(h, w))) for side in (w, h))
        captions *= _LINE
        self.title_lines = title.count("\n") + 1 if title else 0
        top = _MARGIN + self.title_lines * _LINE
        self._legend_height = legend * _LINE
        self.width = 2 * _MARGIN + columns * width + (columns - 1) * _GAP + (_BAR if bar else 0)
        self.height = top + rows * (height + captions + _GAP) + self._legend_height + _MARGIN
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.panels: list[Axes] = []
        self.panel_size = (width, height)
        for row in range(rows):
            for column in range(columns):
                x = _MARGIN + column * (width + _GAP)
                y = top + row * (height + captions + _GAP) + captions
                self.panels.append(self._axes(x, y, width, height))
        self._bar_place = (x + width + _GAP, top + captions, 18, y + height - top - captions)
        if title:
            self.figure.text(_MARGIN / self.width, 1 - _MARGIN / 2 / self.height, title, size=TEXT + 1, va="top")

    def _axes(self, x: float, y: float, width: float, height: float) -> Axes:
        place = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def colour_bar(self, colours: Colormap, largest: float, label: str) -> None:
        """The scale from 0 to `largest`, in the room kept at the right."""
        scale = ScalarMappable(Normalize(0, largest), colours)
        bar = self.figure.colorbar(scale, cax=self._axes(*self._bar_place))
        bar.set_label(label, size=SMALL + 0.5)
        bar.ax.tick_params(labelsize=SMALL)

    def legend(self, handles: Sequence[Artist]) -> None:
        """Explain the marks, in the lines kept below."""
        lines = max(1, self._legend_height // _LINE)
        self.figure.legend(
            handles=handles,
            loc="lower center",
            bbox_to_anchor=(0.5, 4 / self.height),
            ncols=math.ceil(len(handles) / lines),
            fontsize=SMALL + 0.5,
            facecolor="#D8D8D8",
            edgecolor="none",
            borderpad=0.3,
            columnspacing=1.4,
            handletextpad=0.5,
            handlelength=2.8,
        )

    def picture(self) -> np.ndarray:
        """The sheet as uint8 (h, w, 3)."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


def show_image(axes: Axes, image: np.ndarray, caption: str = "", faded: bool = False) -> None:
    """Lay a uint8 (h, w, 3) picture into a panel, pixels as the axes' units; faded: grey and pale, behind heat maps."""
    h, w = image.shape[:2]
    if faded:
        grey = image.mean(-1, keepdims=True)
        image = np.repeat(70 + 0.7 * grey, 3, -1).astype(np.uint8)
    axes.imshow(image, extent=(0, w, h, 0), interpolation="bicubic", aspect="auto")
    axes.set(xlim=(0, w), ylim=(h, 0), xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)
    if caption:
        axes.set_title(caption, fontsize=SMALL + 0.5, loc="left", pad=4)
