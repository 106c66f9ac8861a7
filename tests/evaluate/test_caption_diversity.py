"""Diversity between its extremes."""

import math

import numpy as np
import pytest

from lightning_xai.evaluate.caption_diversity import (
    distinct_ngrams,
    diversity_by_source,
    diversity_scores,
    mutual_bleu,
    self_cider,
    self_cider_kernel,
)
from lightning_xai.evaluate.cider import NgramRarity

RARITY = NgramRarity([["a b c d"], ["e f g h"], ["i j k l"]])
ALIKE, APART = ["a b c d"] * 3, ["a b c d", "e f g h", "i j k l"]


def test_captions_that_are_alike_and_apart():
    assert self_cider_kernel(ALIKE, RARITY) == pytest.approx(np.full((3, 3), 10))
    assert self_cider(self_cider_kernel(ALIKE, RARITY)) == pytest.approx(0, abs=1e-6)
    assert self_cider_kernel(APART, RARITY) == pytest.approx(10 * np.eye(3))
    assert self_cider(self_cider_kernel(APART, RARITY)) == pytest.approx(1)
    assert mutual_bleu(ALIKE) == pytest.approx([1] * 4) and max(mutual_bleu(APART)) < 1e-4


def test_two_alike_and_one_apart():
    kernel = self_cider_kernel([ALIKE[0], *APART[:2]], RARITY)  # eigenvalues 20, 10, 0
    assert self_cider(kernel) == pytest.approx(-math.log(1 / (1 + math.sqrt(0.5)), 3), abs=1e-6)


def test_distinct_runs_of_words():
    assert distinct_ngrams(["a b", "a c"], 1) == 3 / 4 and distinct_ngrams(["a b", "a b"], 2) == 1 / 4
    assert distinct_ngrams(["", ""], 1) == 0


def test_means_over_images():
    scores = diversity_scores([ALIKE, APART], RARITY)
    assert scores["Self-CIDEr"] == pytest.approx(0.5, abs=1e-6)
    assert scores["Div-1"] == pytest.approx((4 / 12 + 1) / 2) and scores["mBLEU-4"] == pytest.approx(0.5, abs=1e-4)
    assert list(scores) == ["Self-CIDEr", "mBLEU-1", "mBLEU-2", "mBLEU-3", "mBLEU-4", "Div-1", "Div-2"]


def test_what_has_no_diversity():
    with pytest.raises(ValueError, match=r"1 caption\(s\) of an image have no mutual BLEU"):
        mutual_bleu(["a"])
    with pytest.raises(ValueError, match=r"1 caption\(s\) of an image have no diversity"):
        self_cider(np.ones((1, 1)))
    with pytest.raises(ValueError, match="at least two images"):
        self_cider(self_cider_kernel(ALIKE, NgramRarity([ALIKE])))
    with pytest.raises(ValueError, match="no captions"):
        diversity_scores([], RARITY)
    with pytest.raises(ValueError, match="a corpus of one image"):
        diversity_scores([ALIKE], NgramRarity([ALIKE]))


def test_captions_that_nothing_tells_apart_are_alike():
    empty, common = ["", ""], ["a a", "a"]
    scores = diversity_scores([empty, common], NgramRarity([["a b"], ["a c"]]))
    assert scores["Self-CIDEr"] == 0 and scores["Div-1"] == pytest.approx((0 + 1 / 3) / 2)


def test_sources_of_several_captions():
    references = [["a b c d"], ["e f g h"], ["i j k l"]]
    found = diversity_by_source({"graphs": [ALIKE, ["a"], APART], "sentences": [["a"], ["b"]]}, references)
    assert found == {
        "Self-CIDEr/graphs": pytest.approx(0.5, abs=1e-6),
        "Div-1/graphs": pytest.approx((4 / 12 + 1) / 2),
        "Div-2/graphs": pytest.approx((3 / 12 + 9 / 12) / 2),
    }
    many = diversity_by_source({"graphs": [APART + ALIKE]}, references, most=3)
    assert many["Div-1/graphs"] == 1  # the first three
    assert diversity_by_source({"graphs": [APART]}, references[:1]) == {}
