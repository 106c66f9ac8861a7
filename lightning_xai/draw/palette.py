"""Colours that people with any colour vision can tell apart."""

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.colors import Colormap, ListedColormap

# Okabe and Ito (2008), "Color Universal Design", without black; the first ones differ most on photographs.
CATEGORIES = ("#E69F00", "#56B4E9", "#D55E00", "#F0E442", "#CC79A7", "#009E73", "#0072B2")
# The same authors' colours in the order for lines on white, yellow left out.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TRUTH = "#FFFFFF"
WEIGHTS: Colormap = colormaps["viridis"]


def category_colour(index: int) -> str:
    """The colour of class number `index`; classes seven apart share one, so a name always stands beside it."""
    return CATEGORIES[index % len(CATEGORIES)]


def layer_colours(count: int) -> Sequence[tuple[float, ...]]:
    """One colour a layer, from dark (first) to light (last)."""
    return [WEIGHTS(0.0 if count == 1 else i / (count - 1)) for i in range(count)]


def heat_colours() -> Colormap:
    """Yellow to dark red, transparent at zero, so that a pale picture below stays visible where no weight lies."""
    steps = [i / 255 for i in range(256)]
    return ListedColormap([(*colormaps["YlOrRd"](s)[:3], 0.9 * min(1.0, 4 * s)) for s in steps])


def name_of(label: int, class_names: Sequence[str]) -> str:
    """The name of a class, or its number where it has none."""
    return class_names[label] if label < len(class_names) and class_names[label] else f"class {label}"
