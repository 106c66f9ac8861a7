"""Sheets of panels."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text

from lightning_xai.draw.boxes import draw_boxes
from lightning_xai.draw.heat_map import HeatPanel, draw_heat_maps
from lightning_xai.draw.palette import WEIGHTS
from lightning_xai.draw.query_evolution import draw_query_evolution
from lightning_xai.draw.sampling_points import PointPanel, draw_sampling_points
from lightning_xai.draw.sheet import Sheet, add_caption, show_image


def test_panels_have_the_shape_of_the_picture_and_do_not_overlap():
    sheet = Sheet((30, 60), rows=2, columns=3, panel=200, title="title", bar=True)
    assert sheet.panel_size == (200, 160)  # no panel is too small for its caption
    sheet = Sheet((50, 60), rows=2, columns=3, panel=240, title="title\nand more", bar=True)
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


NAMES = [f"some class {i}" for i in range(12)]
TITLE = "image 397133, epoch 49: encoder cell of level 0 at the centre of a dining table\ndecoder layer 5, heads 0–7"


def heat(image):
    extent = image.shape[1::-1]
    maps = [HeatPanel(np.eye(5), extent, "all levels")]
    maps += [HeatPanel(np.eye(4) / 3.7, extent, f"level {i}: 23% of the weight") for i in range(4)]
    return draw_heat_maps(image, maps, 3, TITLE, np.array([5, 6, 90, 80]), np.array([50, 50]))


def points(image):
    xy, weights = np.array([[-5.0, 2], [30, 40], [5, 6000]]), np.array([0.2, 0.5, 0.3])
    panel = PointPanel(
        xy, weights, np.array([9.0, 9]), np.ones(4), np.ones(4), "decoder layer 5, heads 0–7, levels 0–3"
    )
    return draw_sampling_points(image, [panel] * 4, 3, TITLE)


def queries(image):
    generator = np.random.default_rng(0)
    size = image.shape[1::-1]
    references, centres = generator.random((7, 9, 2)) * size, generator.random((6, 9, 2)) * size
    labels, scores = generator.integers(0, 12, (6, 9)), generator.random((6, 9))
    return draw_query_evolution(image, references, centres, labels, scores, NAMES, title=TITLE)


def boxes(image):
    return draw_boxes(
        image, np.tile([5.0, 5, 90, 90], (30, 1)), np.arange(30) % 12, NAMES, truth=np.ones((1, 4)), title=TITLE
    )


@pytest.mark.parametrize("shape", [(640, 427), (900, 360), (200, 900)])
@pytest.mark.parametrize("draw", [heat, points, queries, boxes])
def test_texts_are_neither_cut_nor_over_each_other(draw, shape, monkeypatch):
    sheets = []
    plain = Sheet.picture
    monkeypatch.setattr(Sheet, "picture", lambda sheet: sheets.append(sheet) or plain(sheet))
    picture = draw(np.full((*shape, 3), 90, np.uint8))
    (sheet,) = sheets
    assert picture.shape == (sheet.height, sheet.width, 3)
    unused = [axes for axes in sheet.panels if not axes.axison]
    texts = [text for text in sheet.figure.findobj(Text) if text.get_text().strip() and text.axes not in unused]
    extents = {text.get_text() + f" {i}": text.get_window_extent() for i, text in enumerate(texts)}
    (legend,) = (legend.get_window_extent() for legend in sheet.figure.legends)
    for text, a in {**extents, "legend": legend}.items():
        assert a.x0 >= 0 and a.y0 >= 0 and a.x1 <= sheet.width and a.y1 <= sheet.height, text
    for (text, a), (other, b) in combinations(extents.items(), 2):
        over = min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
        assert not over, (text, other)
    assert all(legend.y1 <= axes.get_window_extent().y0 for axes in sheet.panels)


def test_a_word_longer_than_the_panel_gets_smaller_letters():
    sheet = Sheet((90, 30), panel=160)
    (axes,) = sheet.panels
    add_caption(axes, "a " + "w" * 60)
    caption = next(text for text in axes.findobj(Text) if "w" in text.get_text())
    assert caption.get_text() == "a\n" + "w" * 60
    assert caption.get_window_extent().width <= 162


def test_pyplot_is_not_used():
    code = (
        "import sys, lightning_xai.draw.boxes, lightning_xai.draw.curves, lightning_xai.draw.heat_map, "
        "lightning_xai.draw.query_evolution, lightning_xai.draw.sampling_points, lightning_xai.draw.training_data; "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
