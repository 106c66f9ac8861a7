"""Words coloured by their relevance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_xai.draw.palette import relevance_colours, relevance_scale
from lightning_xai.draw.sheet import DPI, SMALL, TEXT

_MARGIN, _GAP = 14, 10  # pixels
_WORD, _NUMBER = 24, 15  # heights in pixels of a coloured word and of the number below it
_LINE = _WORD + _NUMBER + 6
_LONG = 160  # letters of a single word that are drawn


@dataclass(frozen=True)
class WordLine:
    """A text with the relevance of each of its pieces, and what it is to be called.

    pieces: the pieces in order; one that ends a word ends with a space, as tokenizers that read it split it.
    """

    caption: str
    pieces: Sequence[tuple[str, float]]


def draw_words(lines: Sequence[WordLine], width: int = 720, title: str = "") -> np.ndarray:
    """Texts with coloured words, one below the other, as uint8 (h, width, 3).

    Each text has its own scale: from no colour at 0 to dark red at its largest relevance; a text with negative
    relevance, blue, is scaled by its largest absolute value. The number below a word is its relevance.
    """
    figure = Figure(figsize=(width / DPI, 1), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()

    def extent(text: str, size: float, weight: str = "normal") -> float:
        probe = figure.text(0, 0, text, size=size, weight=weight)
        found = probe.get_window_extent(renderer).width
        probe.remove()
        return found

    indent = min(width // 3, 2 * _GAP + int(max((extent(line.caption, SMALL) for line in lines), default=0)))
    placed = []  # (x, y from the top, text, options)
    y = _MARGIN
    if title:
        placed.append((_MARGIN, y, title, {"size": TEXT + 1}))
        y += _LINE * 2 // 3
    for line in lines:
        placed.append((_MARGIN, y + 4, _shortened(line.caption, indent - _GAP, extent), {"size": SMALL}))
        values = np.array([value for _, value in line.pieces], dtype=np.float64)
        shades = relevance_colours()((relevance_scale(values, from_zero=True) + 1) / 2)
        x = _MARGIN + indent
        for (piece, value), shade in zip(line.pieces, shades, strict=True):
            said = piece.rstrip(" ").replace("\n", "↵") or "␣"
            said = said if len(said) <= _LONG else said[: _LONG - 1] + "…"
            wide = extent(said, TEXT + 1)
            number = f"{value:.2g}"
            step = max(wide + 6, extent(number, SMALL - 2.5) + 4)
            if x + step > width - _MARGIN and x > _MARGIN + indent:
                x = _MARGIN + indent
                y += _LINE
            box = {"facecolor": shade, "edgecolor": "none", "pad": 3}
            dark = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] < 0.4 and shade[3] > 0.5
            options = {"size": TEXT + 1, "color": "white" if dark else "black", "bbox": box}
            placed.append((x + 3, y, said, options))
            placed.append((x + 3, y + _WORD, number, {"size": SMALL - 2.5, "color": "#707070"}))
            x += step + (6 if piece.endswith(" ") else 1)
        y += _LINE
    height = y + _MARGIN // 2
    figure.set_size_inches((width + 1e-6) / DPI, (height + 1e-6) / DPI)
    for x, top, text, options in placed:
        figure.text(x / width, 1 - top / height, text, va="top", **options)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _shortened(text: str, width: float, extent) -> str:
    """The text, or as much of its beginning as fits."""
    while extent(text, SMALL) > width and len(text) > 2:
        text = text[:-2].rstrip() + "…"
    return text
