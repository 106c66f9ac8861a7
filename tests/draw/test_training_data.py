"""Pictures of training data, and where boxes lie."""

import numpy as np
import pytest

from lightning_xai.draw.training_data import LabelledImage, box_density, draw_box_density, draw_training_data


def test_rows_of_different_lengths_and_sizes():
    def labelled(h, w, boxes):
        return LabelledImage(np.zeros((h, w, 3), np.uint8), np.array(boxes).reshape(-1, 4), np.ones(len(boxes), int))

    rows = [[labelled(40, 60, [[1, 2, 30, 20]]), labelled(90, 30, [])], [labelled(64, 64, [[0, 0, 64, 64]])]]
    assert draw_training_data(rows, ["", "cell"], "data").dtype == np.uint8
    assert draw_training_data([[labelled(40, 60, [])]], ["", "cell"]).dtype == np.uint8


@pytest.mark.parametrize(("as_thesis", "variances"), [(False, (0.05**2, 0.2**2)), (True, (0.05, 0.2))])
def test_density_of_one_box_is_its_gaussian(as_thesis, variances):
    """A box of 20 × 40 in a picture of 200 × 100, centred at (0.25, 0.6)."""
    density = box_density([np.array([[40.0, 40, 60, 80]])], [(100, 200)], cells=100, as_thesis=as_thesis)
    at = (np.arange(100) + 0.5) / 100
    expected = np.exp(-((at[None] - 0.25) ** 2) / (2 * variances[0]) - (at[:, None] - 0.6) ** 2 / (2 * variances[1]))
    np.testing.assert_allclose(density, expected / expected.max(), rtol=1e-9)


def test_density_weighs_small_boxes_more_and_skips_empty_ones():
    small, large = np.array([[10.0, 10, 14, 14]]), np.array([[60.0, 60, 100, 100]])
    both = box_density([small, large, np.array([[5.0, 5, 5, 9]])], [(100, 100)] * 3)
    alone = box_density([small, large], [(100, 100)] * 2)
    np.testing.assert_array_equal(both, alone)
    assert np.unravel_index(both.argmax(), both.shape) == (7, 7)
    assert 0 < both[51, 51] < 0.05
    assert box_density([], []).max() == 0
    assert draw_box_density(both, 2).dtype == np.uint8
