"""CIDEr and CIDEr-D worked out by hand."""

import math

import pytest

from lightning_xai.evaluate.cider import NgramRarity, cider, cider_d, cider_scores

CORPUS = [["a b"], ["c d"]]


def test_a_word_of_two():
    # the only common run is "a": its cosine is 1 / sqrt 2, and one pair of words is missing
    expected = 10 / 4 / math.sqrt(2)
    assert cider_scores(["a"], [["a b"]], NgramRarity(CORPUS)) == pytest.approx([expected * math.exp(-1 / 72)])
    assert cider_scores(["a"], [["a b"]], NgramRarity(CORPUS), cider) == pytest.approx([expected])


def test_repetition_pays_only_without_clipping():
    expected = 10 / 4 / math.sqrt(2)
    assert cider_scores(["a a"], [["a b"]], NgramRarity(CORPUS), cider_d) == pytest.approx([expected / 2])
    assert cider_scores(["a a"], [["a b"]], NgramRarity(CORPUS), cider) == pytest.approx([expected])


@pytest.mark.parametrize("words, score", [("a b c d e", 10), ("a b c d", 10), ("a b c", 7.5), ("a b", 5), ("a", 2.5)])
def test_a_caption_that_is_its_reference(words, score):
    assert cider_scores([words, "x"], [[words], ["z"]]) == pytest.approx([score, 0])


def test_references_are_averaged():
    rarity = NgramRarity([["a b c d"], ["c d e f"]])
    both = cider_scores(["a b c d"], [["a b c d", "e f"]], rarity)
    assert both == pytest.approx([5])


def test_words_of_all_images_say_nothing():
    assert cider_scores(["a x", "a y"], [["a"], ["a"]]) == [0, 0]
    assert cider_scores(["a b c d"], [["a b c d"]]) == [0]  # a single image: every word is common
    assert NgramRarity([["a b", "a"], ["a"]]).images_with[("a",)] == 2  # images, not sentences


def test_an_empty_corpus():
    with pytest.raises(ValueError, match="has no image"):
        NgramRarity([])
