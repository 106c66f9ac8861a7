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
from matplotlib.legend import Legend
from matplotlib.text import Text

DPI = 100
TEXT, SMALL = 10, 8.5  # points
_LINE, _NEXT_LINE = 22, 15  # pixels that a line of text takes, and each further one of a caption
_GAP, _MARGIN, _BAR = 10, 14, 92


class Sheet:
    """A grid of rows × columns panels that all show a picture of the same shape.

    shape: (h, w) of that picture. panel: length in pixels of a panel's longer side. bar: whether room for a colour bar
    is kept at the right. The height follows from the captions, the title and the legend when the picture is made.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        rows: int = 1,
        columns: int = 1,
        panel: int = 720,
        title: str = "",
        bar: bool = False,
    ):
        h, w = shape
        # A very long picture still gets a panel that captions fit on.
        width, height = (max(160, round(panel * side / max(h, w))) for side in (w, h))
        self.panel_size = (width, height)
        self.columns = columns
        self.width = 2 * _MARGIN + columns * width + (columns - 1) * _GAP + (_BAR if bar else 0)
        self.figure = Figure(figsize=(self.width / DPI, 1), dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self._title = self.figure.text(0, 1, title, size=TEXT + 1, va="top")
        fit_text(self._title, self.width - 2 * _MARGIN)
        self.panels: list[Axes] = [self.figure.add_axes((0, 0, 1, 1)) for _ in range(rows * columns)]
        self._bar: Axes | None = None
        self._legend: Legend | None = None
        self._lay_out()

    def _lay_out(self) -> None:
        """Give every part its place, in the order from the top; panels keep their size in pixels."""
        width, height = self.panel_size
        title = self._title.get_text()
        first = y = _MARGIN + (_LINE * (title.count("\n") + 1) if title else 0)
        places = []
        for start in range(0, len(self.panels), self.columns):
            row = self.panels[start : start + self.columns]
            y += _LINE + _NEXT_LINE * max(axes.get_title(loc="left").count("\n") for axes in row)
            first = y if start == 0 else first
            places += [(_MARGIN + column * (width + _GAP), y, width, height) for column in range(self.columns)]
            y += height + _GAP
        legend = self._legend and math.ceil(self._legend.get_window_extent(self.canvas.get_renderer()).height)
        self.height = y + (legend or 0) + _MARGIN
        # a little more than whole pixels: the canvas cuts off, and 477 / 100 * 100 may be less than 477
        self.figure.set_size_inches((self.width + 1e-6) / DPI, (self.height + 1e-6) / DPI)
        for axes, place in zip(self.panels, places, strict=True):
            axes.set_position(self._share(*place))
        if self._bar:
            self._bar.set_position(self._share(self.width - _MARGIN - _BAR + _GAP, first, 18, y - _GAP - first))
        if self._legend:
            self._legend.set_bbox_to_anchor((0.5, 4 / self.height))
        self._title.set_position((_MARGIN / self.width, 1 - _MARGIN / 2 / self.height))

    def _share(self, x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        """A place in pixels from the upper left corner, as the figure counts it."""
        return (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)

    def colour_bar(self, colours: Colormap, largest: float, label: str, least: float = 0.0) -> None:
        """The scale from `least` to `largest`, in the room kept at the right."""
        scale = ScalarMappable(Normalize(least, largest), colours)
        self._bar = self.figure.add_axes((0, 0, 1, 1))
        self._lay_out()
        bar = self.figure.colorbar(scale, cax=self._bar)
        bar.set_label(label, size=SMALL + 0.5)
        bar.ax.tick_params(labelsize=SMALL)
        fit_text(bar.ax.yaxis.label, self._bar.get_window_extent().height)

    def legend(self, handles: Sequence[Artist]) -> None:
        """Explain the marks below the panels, in as few lines as the width allows."""
        for lines in range(1, len(handles) + 1):
            legend = self.figure.legend(
                handles=handles,
                loc="lower center",
                bbox_to_anchor=(0.5, 0),
                ncols=math.ceil(len(handles) / lines),
                fontsize=SMALL + 0.5,
                facecolor="#D8D8D8",
                edgecolor="none",
                borderpad=0.3,
                columnspacing=1.4,
                handletextpad=0.5,
                handlelength=2.8,
            )
            width = legend.get_window_extent(self.canvas.get_renderer()).width
            if width <= self.width - _MARGIN or lines == len(handles):
                self._legend = legend
                return
            legend.remove()

    def picture(self) -> np.ndarray:
        """The sheet as uint8 (h, w, 3)."""
        self._lay_out()
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
        add_caption(axes, caption)


def add_caption(axes: Axes, caption: str) -> None:
    """Write a caption above a panel, in as many lines as its width needs."""
    fit_text(axes.set_title(caption, fontsize=SMALL + 0.5, loc="left", pad=4), axes.get_window_extent().width)


def fit_text(text: Text, length: float) -> None:
    """Break a text into lines of at most `length` pixels; where a single word is longer, its letters get smaller."""
    renderer = text.figure.canvas.get_renderer()

    def measure(line: str) -> float:
        return renderer.get_text_width_height_descent(line, text.get_fontproperties(), False)[0]

    lines = []
    for given in text.get_text().split("\n"):
        lines.append("")
        for word in given.split(" "):
            longer = f"{lines[-1]} {word}" if lines[-1] else word
            if lines[-1] and measure(longer) > length:
                lines.append(word)
            else:
                lines[-1] = longer
    text.set_text("\n".join(lines))
    longest = max(map(measure, lines))
    if longest > length:
        text.set_fontsize(text.get_fontsize() * length / longest)
