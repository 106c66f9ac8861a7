"""Names of boxes."""

import numpy as np
import pytest

from lightning_xai.draw.boxes import add_named_boxes, class_legend, draw_boxes
from lightning_xai.draw.sheet import Sheet, show_image

NAMES = ["", "red cell", "white cell", "platelet"]


def extents_of_names(boxes, labels, scores):
    sheet = Sheet((100, 128))
    (axes,) = sheet.panels
    show_image(axes, np.zeros((100, 128, 3), np.uint8))
    hidden = add_named_boxes(axes, boxes, labels, NAMES, scores)
    renderer = sheet.canvas.get_renderer()
    return [text.get_window_extent(renderer).extents for text in axes.texts], axes.get_window_extent().extents, hidden


@pytest.mark.parametrize("seed", range(3))
def test_names_neither_overlap_nor_leave_the_picture(seed):
    generator = np.random.default_rng(seed)
    corner = generator.random((25, 2)) * (118, 90)
    boxes = np.concatenate([corner, corner + 3 + generator.random((25, 2)) * 30], 1).clip(0, (128, 100, 128, 100))
    texts, panel, hidden = extents_of_names(boxes, generator.integers(1, 4, 25), generator.random(25))
    assert len(texts) + hidden == 25
    assert len(texts) >= 15
    for i, a in enumerate(texts):
        assert a[0] >= panel[0] and a[1] >= panel[1] and a[2] <= panel[2] and a[3] <= panel[3]
        for b in texts[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_boxes_at_the_same_place_keep_the_surest_name():
    boxes = np.tile([[10.0, 10.0, 14.0, 14.0]], (40, 1))
    scores = np.linspace(0, 1, 40)
    texts, _, hidden = extents_of_names(boxes, np.ones(40, int), scores)
    assert hidden > 0
    assert 0 < len(texts) < 40


def test_boxes_are_drawn_in_the_colour_of_their_class():
    image = np.zeros((100, 128, 3), np.uint8)
    picture = draw_boxes(image, np.array([[20.0, 20, 100, 80]]), np.array([1]), NAMES, np.array([0.9]))
    blue = np.all(np.abs(picture.astype(int) - (0x56, 0xB4, 0xE9)) < 12, -1)
    _, columns = np.nonzero(blue[60:-40])
    assert columns.max() - columns.min() == pytest.approx(80 / 128 * 720, abs=12)


def test_nothing_to_draw():
    empty = np.zeros((0, 4)), np.zeros(0, int)
    picture = draw_boxes(np.zeros((64, 64, 3), np.uint8), *empty, NAMES, np.zeros(0), truth=np.zeros((0, 4)))
    assert picture.dtype == np.uint8


def test_legend_of_many_classes():
    lines = class_legend(np.arange(20), [f"thing {i}" for i in range(20)], most=5)
    assert [line.get_label() for line in lines] == [f"thing {i}" for i in range(5)] + ["and 15 more classes"]
