"""Sheets of panels."""

import subprocess
import sys

import numpy as np

from lightning_xai.draw.palette import WEIGHTS
from lightning_xai.draw.sheet import Sheet, show_image


def test_panels_have_the_shape_of_the_picture_and_do_not_overlap():
    sheet = Sheet((30, 60), rows=2, columns=3, panel=200, title="title", bar=True, legend=1)
    assert sheet.panel_size == (200, 160)  # no panel is too small for its caption
    sheet = Sheet((50, 60), rows=2, columns=3, panel=240, title="title\nand more", bar=True, legend=1)
    extents = [axes.get_window_extent().extents for axes in sheet.panels]
    for i, a in enumerate(extents):
        assert np.isclose((a[2] - a[0]) / (a[3] - a[1]), 60 / 50)
        assert a[0] >= 0 and a[1] >= 0 and a[2] <= sheet.width and a[3] <= sheet.height
        for b in extents[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert sheet.picture().shape == (sheet.height, sheet.width, 3)


def test_a_pixel_lands_where_it_belongs():
    """A small picture is enlarged; a point at the centre of pixel (2, 5) lies on that pixel."""
    image = np.zeros((6, 8, 3), np.uint8)
    image[2, 5] = 255
    sheet = Sheet(image.shape[:2], panel=640)
    (axes,) = sheet.panels
    show_image(axes, image)
    x0, y0, x1, y1 = (round(v) for v in axes.get_window_extent().extents)
    x, y = axes.transData.transform((5.5, 2.5))
    panel = sheet.picture()[::-1][y0:y1, x0:x1].sum(-1)  # rows from below, as in the canvas's coordinates
    place = np.argwhere(panel > 0.95 * panel.max()).mean(0)
    np.testing.assert_allclose(np.add(place, (y0, x0)), (y, x), atol=3)


def test_the_colour_bar_tells_the_real_scale():
    sheet = Sheet((40, 40), panel=300, bar=True)
    sheet.colour_bar(WEIGHTS, 0.25, "weight")
    assert sheet.figure.axes[-1].get_ylim() == (0, 0.25)


def test_pyplot_is_not_used():
    code = (
        "import sys, lightning_xai.draw.boxes, lightning_xai.draw.curves, lightning_xai.draw.heat_map, "
        "lightning_xai.draw.query_evolution, lightning_xai.draw.sampling_points, lightning_xai.draw.training_data; "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
