"""A caption word by word: which node of the scene graph each word was said about."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from lightning_xai.draw.boxes import add_names
from lightning_xai.draw.palette import category_colour, heat_colours
from lightning_xai.draw.sheet import DPI, SMALL, TEXT, fit_text, show_image

OBJECT, ATTRIBUTE, RELATION = range(3)
GATES = ("by content", "flow: stay", "flow: 1 edge", "flow: 2 edges")
MEMORY = "memory write"
_PICTURE, _WIDEST, _TALLEST = 340, 560, 480  # pixels of the picture: a square's side, and at most
_MARGIN, _HEAD = 14, 92  # pixels
_ROW, _COLUMN, _WORD = 24, 46, 122  # of the table, and what a word is given
_NUMBER_FROM = 0.05  # smaller shares stay without a number


@dataclass(frozen=True)
class DrawnNode:
    """A node: `name`, `kind` (0 object, 1 attribute, 2 relation), `box` xyxy in pixels, `owner` its object or -1."""

    name: str
    kind: int
    box: tuple[float, float, float, float]
    owner: int = -1


def draw_caption_nodes(
    image: np.ndarray,
    nodes: Sequence[DrawnNode],
    words: Sequence[str],
    attention: np.ndarray,
    gates: np.ndarray | None = None,
    title: str = "",
    memory: np.ndarray | None = None,
) -> np.ndarray:
    """The picture with its nodes' boxes beside a table of words and nodes, as uint8 (h, w, 3).

    image: uint8 (h, w, 3). attention: (T, N) of T words to N nodes, rows sum to 1. gates: (T, 4) the weight of
    attention by content, the rest of which follows the graph's edges, and the shares of staying, one and two edges.
    memory: (T,) how much of the codes of the nodes it attends to each word rewrites. A word has the colour of what it
    attends to most: an object together with its attributes, which have its colour, or a relation. Raises ValueError
    where these do not fit together.
    """
    attention = np.asarray(attention, np.float64)
    if attention.shape != (len(words), len(nodes)):
        raise ValueError(
            f"attention of shape {attention.shape}: for {len(words)} words and {len(nodes)} nodes it must be "
            f"{(len(words), len(nodes))}"
        )
    shares = _shares_of_words(len(words), gates, memory)
    colours = node_colours(nodes)
    columns = len(nodes) + len(shares)
    gap = _COLUMN // 3 if shares else 0
    h, w = image.shape[:2]
    wide = min(_PICTURE * (w / h) ** 0.5, _WIDEST, _TALLEST * w / h)
    tall = wide * h / w
    left = 2 * _MARGIN + wide
    width = round(left + _WORD + columns * _COLUMN + gap + 24 + _MARGIN)
    figure = Figure(figsize=((width + 1e-6) / DPI, 1), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    head = figure.text(0, 1, title, size=TEXT + 1, va="top")
    fit_text(head, width - 2 * _MARGIN)
    top = _MARGIN + (20 * (head.get_text().count("\n") + 1) if title else 0)
    height = round(top + max(tall, _HEAD + len(words) * _ROW) + _MARGIN)
    figure.set_size_inches((width + 1e-6) / DPI, (height + 1e-6) / DPI)
    head.set_position((_MARGIN / width, 1 - _MARGIN / height))
    panel = figure.add_axes((_MARGIN / width, 1 - (top + tall) / height, wide / width, tall / height))
    show_image(panel, image)
    _add_boxes(panel, nodes, colours)

    # one unit of the table's axes is one pixel, y down
    table = figure.add_axes((left / width, 0, (width - left) / width, (height - top) / height))
    table.set(xlim=(0, width - left), ylim=(height - top, 0))
    table.axis("off")
    heads = [(_name(node, number), colours[number]) for number, node in enumerate(nodes)]
    _add_columns(table, _WORD, heads, attention, heat_colours())
    if shares:
        grey = [(name, "#606060") for name in shares]
        _add_columns(table, _WORD + len(nodes) * _COLUMN + gap, grey, np.stack([*shares.values()], 1), None)
    for row, word in enumerate(words):
        y = _HEAD + row * _ROW
        shade = (*to_rgba(_colour_of_word(attention[row], colours))[:3], 0.55)
        table.add_patch(Rectangle((0, y + 2), _WORD - 6, _ROW - 4, facecolor=shade, edgecolor="none"))
        table.text(5, y + _ROW / 2, _short(word, 13), size=TEXT, va="center")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _shares_of_words(words: int, gates: np.ndarray | None, memory: np.ndarray | None) -> dict[str, np.ndarray]:
    """What each word has one of besides its attention, by its name: (T,) each."""
    found: dict[str, np.ndarray] = {}
    for name, values, titles in (("gates", gates, GATES), ("memory", memory, (MEMORY,))):
        if values is None:
            continue
        given = np.asarray(values, np.float64)
        shape = (words, len(titles)) if name == "gates" else (words,)
        if given.shape != shape:
            raise ValueError(f"{name} of shape {given.shape}: for {words} words they must be {shape}")
        found |= dict(zip(titles, given.reshape(words, len(titles)).T, strict=True))
    return found


def node_colours(nodes: Sequence[DrawnNode]) -> list[str]:
    """A colour for each object, its attributes in the same, and one for each relation."""
    colours: list[str] = []
    used = 0
    for node in nodes:
        if node.kind == ATTRIBUTE and 0 <= node.owner < len(colours):
            colours.append(colours[node.owner])
        else:
            colours.append(category_colour(used))
            used += 1
    return colours


def _colour_of_word(attention: np.ndarray, colours: Sequence[str]) -> str:
    """The colour whose nodes have most of a word's attention (N,)."""
    alike = np.array([[other == colour for other in colours] for colour in colours])
    return colours[int((alike @ attention).argmax())]


def _add_boxes(panel: Axes, nodes: Sequence[DrawnNode], colours: Sequence[str]) -> None:
    """Objects in solid boxes with their names, relations in dotted ones; attributes have their object's box."""
    outline = [withStroke(linewidth=4, foreground="black")]
    (_, w), (h, _) = panel.get_xlim(), panel.get_ylim()
    pixel = w / panel.get_window_extent().width
    for node, colour in zip(nodes, colours, strict=True):
        if node.kind == ATTRIBUTE:
            continue
        x0, y0, x1, y1 = node.box
        if node.kind == RELATION:  # around its objects, whose own edges it would hide
            x0, y0 = max(x0 - 5 * pixel, pixel), max(y0 - 5 * pixel, pixel)
            x1, y1 = min(x1 + 5 * pixel, w - pixel), min(y1 + 5 * pixel, h - pixel)
        style = {"linestyle": ":", "linewidth": 1.6} if node.kind == RELATION else {"linewidth": 2.2}
        panel.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, path_effects=outline, **style)
        )
    numbered = enumerate(zip(nodes, colours, strict=True))
    add_names(panel, [(n.box, _name(n, number), colour) for number, (n, colour) in numbered if n.kind == OBJECT])


def _add_columns(table: Axes, left: float, heads: Sequence[tuple[str, str]], values: np.ndarray, colours) -> None:
    """Columns of shares from `left` on; as coloured cells, or without `colours` as grey bars."""
    for column, (name, colour) in enumerate(heads):
        x = left + column * _COLUMN
        table.add_patch(Rectangle((x + 2, _HEAD - 6), _COLUMN - 4, 4, facecolor=colour, edgecolor="none"))
        table.text(x + _COLUMN / 2 - 6, _HEAD - 10, _short(name, 14), size=SMALL, rotation=50, va="bottom")
        for row, value in enumerate(values[:, column]):
            y = _HEAD + row * _ROW
            place = (x + 2, y + 2)
            wide = _COLUMN - 4
            table.add_patch(Rectangle(place, wide, _ROW - 4, facecolor="#F4F4F4", edgecolor="none"))
            share = float(np.clip(value, 0, 1))
            face = colours(share) if colours is not None else "#B8B8B8"
            filled = wide if colours is not None else wide * share
            table.add_patch(Rectangle(place, filled, _ROW - 4, facecolor=face, edgecolor="none"))
            if value >= _NUMBER_FROM:
                dark = colours is not None and share > 0.65
                options = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
                table.text(x + _COLUMN / 2, y + _ROW / 2, f"{value:.2f}", size=SMALL - 0.5, **options)


def _name(node: DrawnNode, number: int) -> str:
    return node.name or f"node {number}"


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
