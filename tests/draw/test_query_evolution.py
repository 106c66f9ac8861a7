"""The module view of a decoder."""

import numpy as np
import pytest

from lightning_xai.draw.query_evolution import draw_query_evolution

NAMES = ["", "one", "two"]


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_any_depth(depth):
    generator = np.random.default_rng(0)
    references, centres = generator.random((depth + 1, 9, 2)) * 64, generator.random((depth, 9, 2)) * 64
    labels, scores = generator.integers(0, 3, (depth, 9)), generator.random((depth, 9))
    image = np.zeros((64, 64, 3), np.uint8)
    every = draw_query_evolution(image, references, centres, labels, scores, NAMES)
    some = draw_query_evolution(image, references, centres, labels, scores, NAMES, shown=np.array([2]), title="t")
    assert every.dtype == np.uint8
    assert (every[60:] > 40).sum() > (some[80:] > 40).sum()
