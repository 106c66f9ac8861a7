"""BLEU counted by hand."""

import math

import pytest

from lightning_xai.evaluate.bleu import bleu, bleu_counts, bleu_of

PERFECT = "two dogs play in the park"


def test_counts_are_clipped_by_the_references():
    counts = bleu_counts("the the the cat", ["the cat sits on the couch", "a cat"])
    # "the" occurs twice at most, "the cat" once
    assert counts.right == (3, 1, 0, 0) and counts.guessed == (4, 3, 2, 1)


@pytest.mark.parametrize("lengths, nearest", [((3, 6), 3), ((3, 5), 3), ((5, 3), 3), ((4, 9), 4), ((1, 5), 5)])
def test_the_reference_nearest_in_length_counts_and_of_two_the_shorter(lengths, nearest):
    assert bleu_counts("a b c d", [" ".join("x" * length) for length in lengths]).reference_words == nearest


def test_a_perfect_caption():
    assert bleu([PERFECT], [["something else", PERFECT]]) == pytest.approx([1] * 4)


def test_a_short_caption_is_penalised():
    scores = bleu(["two dogs"], [[PERFECT]])
    assert scores[:2] == pytest.approx([math.exp(1 - 6 / 2)] * 2)
    assert scores[2] == pytest.approx(math.exp(-2) * 1e-6 ** (1 / 3))  # no run of three: coco-caption's smoothing


def test_a_corpus_is_counted_together():
    captions, references = [PERFECT, "a cat on a mat"], [[PERFECT], ["one cat on one mat"]]
    counts = bleu_counts(captions[0], references[0]) + bleu_counts(captions[1], references[1])
    assert counts.right == (6 + 3, 5 + 1, 4, 3) and counts.guessed == (11, 9, 7, 5)
    assert bleu(captions, references) == bleu_of(counts)
    assert bleu(captions, references)[1] == pytest.approx(math.sqrt(9 / 11 * 6 / 9))


def test_nothing_in_common_and_nothing_said():
    assert all(0 <= score < 1e-8 for score in bleu(["x y z w v"], [["a b"]]))
    assert all(0 <= score < 1e-8 for score in bleu([""], [["a b"]]))
