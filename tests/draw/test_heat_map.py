"""Heat maps."""

import numpy as np
import pytest

from lightning_xai.draw.heat_map import HeatPanel, draw_heat_maps


def test_heat_lies_where_its_cells_are():
    """The map covers a padded image of twice the width: its column 3 of 8 is at 7/8 of the picture."""
    heat = np.zeros((4, 8))
    heat[1, 3] = 0.2
    picture = draw_heat_maps(np.full((96, 128, 3), 128, np.uint8), [HeatPanel(heat, (256, 96))]).astype(int)
    redness = (picture[..., 0] - picture[..., 2])[40:-20, :730]
    middle = np.argwhere(redness > 0.9 * redness.max()).mean(0)
    assert middle[1] == pytest.approx(14 + 720 * 7 / 8, abs=25)
    assert middle[0] + 40 == pytest.approx(36 + 540 * 1.5 / 4, abs=30)


def test_a_map_of_zeros():
    panels = [HeatPanel(np.zeros((2, 3)), (30, 20), caption) for caption in ("all", "level 0", "level 1", "level 2")]
    picture = draw_heat_maps(np.zeros((20, 30, 3), np.uint8), panels, columns=3, box=np.array([1, 2, 9, 8]))
    assert picture.dtype == np.uint8
