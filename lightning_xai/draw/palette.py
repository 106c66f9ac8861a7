"""Colours that people with any colour vision can tell apart."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, ListedColormap

# Okabe and Ito (2008), "Color Universal Design", without black; the first ones differ most on photographs.
CATEGORIES = ("#E69F00", "#56B4E9", "#D55E00", "#F0E442", "#CC79A7", "#009E73", "#0072B2")
# The same authors' colours in the order for lines on white, yellow left out.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TRUTH = "#FFFFFF"
ROUNDING = 2e-6  # relative, of numbers that were float32 on the way
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


def relevance_colours() -> Colormap:
    """Of relevance from -1 (dark blue) over 0 (transparent) to 1 (dark red, as `heat_colours`)."""
    steps = [i / 127 for i in range(128)]
    negative = [(*colormaps["GnBu"](s)[:3], 0.9 * min(1.0, 4 * s)) for s in reversed(steps)]
    positive = [(*colormaps["YlOrRd"](s)[:3], 0.9 * min(1.0, 4 * s)) for s in steps]
    return ListedColormap([*negative, *positive])


def relevance_scale(values: np.ndarray, from_zero: bool = False) -> np.ndarray:
    """Relevances as they are coloured, in [-1, 1]: a map without negative ones from its least (0) to its largest (1).

    With negative ones, beyond rounding: divided by the largest absolute value. from_zero: 0 stays 0 in any case. A map
    that is constant but for rounding becomes 0.
    """
    values = np.asarray(values, dtype=np.float64)
    largest = np.abs(values).max(initial=0.0)
    if not largest > 0:
        return np.zeros_like(values)
    low = values.min()
    if low < -1e-3 * largest or from_zero:
        return values / largest
    extent = values.max() - low
    return (values - low) / extent if extent > ROUNDING * largest else np.zeros_like(values)
