"""Sheets of explanations."""

import numpy as np
import pytest

from lightning_xai.draw.explanation_sheet import ExplainedTarget, _range, draw_explanations
from lightning_xai.draw.palette import relevance_scale

GREY = np.full((80, 120, 3), 128, np.uint8)


def heat(row=0, column=0, value=1.0):
    values = np.zeros((4, 6))
    values[row, column] = value
    return values


def test_a_map_lies_over_its_cells_in_the_column_of_its_method():
    target = ExplainedTarget("query 3: cat 0.90", {"rollout": heat(0, 0), "ours": heat(3, 5)})
    picture = draw_explanations(GREY, [target], boxes=np.array([[10, 10, 50, 40]]), labels=["cat 0.90"]).astype(int)
    red = (picture[:, :-110, 0] - picture[:, :-110, 2]) > 120
    red[: picture.shape[0] // 8] = False
    columns = np.flatnonzero(red.any(0))
    first, second = columns[columns < 1000], columns[columns >= 1000]
    # panels of 320 begin at 14 and follow each 330
    assert first.mean() == pytest.approx(14 + 2 * 330 + 320 / 12, abs=25)
    assert second.mean() == pytest.approx(14 + 3 * 330 + 320 * 11 / 12, abs=25)
    rows = [np.flatnonzero(red[:, part].any(1)).mean() for part in (slice(0, 1000), slice(1000, None))]
    assert rows[1] - rows[0] == pytest.approx(213 * 3 / 4, abs=25)


def test_each_target_has_a_row_and_many_methods_more_lines():
    def drawn(targets, methods):
        maps = {f"m{i}": heat() for i in range(methods)}
        return draw_explanations(GREY, [ExplainedTarget(f"t{i}", maps) for i in range(targets)], ["cat 0.9"]).shape

    one, two = drawn(1, 3), drawn(2, 3)
    assert one[1] == two[1] and two[0] - one[0] == pytest.approx(213 + 32, abs=4)
    assert drawn(1, 7)[1] == drawn(1, 4)[1] and drawn(1, 7)[0] == two[0]


def test_signed_maps_get_a_signed_scale_and_numbers_that_are_none_are_said():
    signed = heat() - heat(3, 3, 2.0)
    picture = draw_explanations(GREY, [ExplainedTarget("t", {"lrp": signed, "broken": heat() * np.nan})], ["cat 0.9"])
    blue = (picture[..., 2].astype(int) - picture[..., 0]) > 80
    assert blue[:, 14 + 2 * 330 :][:, :320].any()  # in the first map
    assert not blue[:, 14 + 3 * 330 :][:, :320].any()


def test_without_targets_input_and_prediction_are_shown():
    picture = draw_explanations(GREY, [], ["nothing above 0.5"], np.zeros((0, 4)), (), np.array([[1, 2, 30, 40]]))
    assert picture.shape[1] < 900 and picture.std() > 5


def test_words_stand_below():
    words = {"rollout": [("a ", 0.1), ("cat ", 0.9)]}
    with_words = draw_explanations(GREY, [ExplainedTarget("'a cat' 0.93", {"rollout": heat()}, words)], ["x"])
    without = draw_explanations(GREY, [ExplainedTarget("'a cat' 0.93", {"rollout": heat()})], ["x"])
    assert with_words.shape[1] == without.shape[1]
    assert np.array_equal(with_words[: len(without)], without)
    below = with_words[len(without) :].astype(int)
    assert ((below[..., 0] - below[..., 2]) > 60).any()


def test_ranges_have_the_digits_that_tell_their_ends_apart():
    def said(low, high):
        values = np.array([[low, high]])
        return _range(values, relevance_scale(values))

    assert said(0, 0.123) == "0 to 0.12"
    assert said(0.028, 0.02801) == "0.028 to 0.02801"
    assert said(-2, 0.5) == "-2 to 0.5"
    assert said(0.028, 0.028) == "0.028 everywhere" and said(0, 0) == "0 everywhere"


def test_relevance_scale():
    assert relevance_scale(np.array([2.0, 3, 4])).tolist() == [0, 0.5, 1]
    assert relevance_scale(np.array([2.0, 3, 4]), from_zero=True).tolist() == [0.5, 0.75, 1]
    assert relevance_scale(np.array([-4.0, 0, 2])).tolist() == [-1, 0, 0.5]
    assert relevance_scale(np.array([-1e-9, 1.0]))[0] == 0  # rounding is no sign
    assert relevance_scale(np.array([0.028, 0.028 * (1 + 3e-7)])).tolist() == [0, 0]  # constant but for rounding
    assert relevance_scale(np.array([0.028, 0.028 * (1 + 3e-5)])).tolist() == [0, 1]
    assert relevance_scale(np.full(3, 7.0)).tolist() == relevance_scale(np.zeros(3)).tolist() == [0, 0, 0]
