"""Coloured words."""

import numpy as np
import pytest

from lightning_xai.draw.words import WordLine, draw_words


def coloured(picture: np.ndarray) -> np.ndarray:
    """(h, w): how much red is above blue, and below."""
    return picture[..., 0].astype(int) - picture[..., 2].astype(int)


def test_the_most_relevant_word_is_darkest_and_words_stand_in_their_order():
    pieces = [("a ", 0.0), ("zeb", 0.1), ("ra ", 0.8), ("runs ", 0.1)]
    picture = draw_words([WordLine("rollout", pieces)], 600)
    assert picture.shape[1] == 600 and picture.dtype == np.uint8
    red = (coloured(picture) > 60) & (picture[..., 1] < 60)
    columns = np.flatnonzero(red.any(0))
    assert len(columns) and columns.max() - columns.min() < 60  # one word stands out, of two letters
    pale = np.flatnonzero((coloured(picture) > 5).any(0))
    assert pale.min() < columns.min() < columns.max() < pale.max()  # between its neighbours of little relevance


def test_negative_relevance_is_blue():
    picture = draw_words([WordLine("lrp", [("no ", -1.0), ("yes ", 0.5)])], 400)
    shades = coloured(picture)
    blue, red = np.flatnonzero((shades < -40).any(0)), np.flatnonzero((shades > 40).any(0))
    assert blue.max() < red.min()


def test_long_texts_take_more_lines_and_stay_inside():
    words = [(f"word{i} ", 1.0) for i in range(60)]
    long, short = draw_words([WordLine("a", words)], 400), draw_words([WordLine("a", words[:2])], 400)
    assert long.shape[0] > 5 * short.shape[0]
    assert (long[:, -8:] == 255).all() and (long[-3:] == 255).all()


@pytest.mark.parametrize("pieces", [[], [("one ", 0.0)], [("", 1.0), ("\n", 2.0), ("x" * 300, 1.0)]])
def test_odd_texts(pieces):
    picture = draw_words([WordLine("a very long name of a method with many options, start_layer=1", pieces)], 300, "t")
    assert picture.shape[1] == 300 and picture.min() < 128
