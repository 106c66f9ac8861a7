"""A relevance map added to its photograph in the colours that are usual for it, from blue over green to red."""

import numpy as np


def scaled(values: np.ndarray) -> np.ndarray:
    """(v - min) / (max - min) in float32; a constant array becomes 0."""
    values = np.asarray(values, dtype=np.float32)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def jet_colours() -> np.ndarray:
    """256 colours (256, 3), RGB uint8: OpenCV's COLORMAP_JET, from half blue over cyan and yellow to half red."""
    quarters = np.arange(256)[:, None] * 4.0
    rising = quarters + np.array([-382.5, -127.5, 127.5])  # of red, green, blue
    falling = np.array([1147.5, 892.5, 637.5]) - quarters
    return np.rint(np.minimum(rising, falling).clip(0, 255)).astype(np.uint8)  # halves to the even neighbour


def heat_overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture (h, w, 3), RGB uint8: jet colours of the heat plus the photograph, divided by the largest sum.

    image: (h, w, 3) RGB, uint8 or any floats: scaled to [0, 1]. heat: (h, w) on the same pixels, scaled likewise.
    As in the notebooks of Chefer et al., except that those swap the photograph's red and blue.
    """
    if image.shape != (*heat.shape, 3):
        raise ValueError(
            f"the image {image.shape} must be (h, w, 3) with the h x w of the heat {heat.shape}: lay it on pixels first"
        )
    colours = jet_colours()[(255 * scaled(heat)).astype(np.uint8)].astype(np.float32) / 255
    total = colours + scaled(image)
    return (255 * (total / total.max())).astype(np.uint8)
