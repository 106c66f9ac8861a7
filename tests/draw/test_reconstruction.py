"""Sheets of what a masked autoencoder painted."""

import numpy as np
import pytest

from lightning_xai.draw.reconstruction import ReconstructionRow, draw_reconstructions


def plain(value, shape=(32, 48)):
    return np.full((*shape, 3), value, np.uint8)


def test_four_pictures_a_row_in_their_order():
    rows = [ReconstructionRow(*(plain(40 * row + 10 * part) for part in range(4)), "image 1") for row in range(2)]
    sheet = draw_reconstructions(rows, "epoch 3", panel_size=96)
    assert sheet.dtype == np.uint8
    runs = []
    for line in (sheet[sheet.shape[0] // 3], sheet[sheet.shape[0] * 4 // 5]):
        values = [int(v) for v in line[:, 0] if v < 255]
        runs.append([v for i, v in enumerate(values) if i == 0 or v != values[i - 1]])
    assert runs == [[0, 10, 20, 30], [40, 50, 60, 70]]


def test_pictures_of_several_shapes_and_none():
    with pytest.raises(ValueError, match="of one shape, not of"):
        draw_reconstructions([ReconstructionRow(plain(0), plain(0), plain(0), plain(0, (8, 8)))])
    with pytest.raises(ValueError, match="none"):
        draw_reconstructions([])
