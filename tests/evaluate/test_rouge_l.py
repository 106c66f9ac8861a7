"""ROUGE-L against all subsequences."""

import random
from itertools import combinations

import pytest

from lightning_xai.evaluate.rouge_l import longest_common_subsequence, rouge_l


def every_subsequence(words):
    return {choice for length in range(len(words) + 1) for choice in combinations(words, length)}


def test_the_longest_common_subsequence_is_found():
    draws = random.Random(0)
    for _ in range(30):
        first, second = (draws.choices("abcd", k=draws.randrange(8)) for _ in range(2))
        common = every_subsequence(first) & every_subsequence(second)
        assert longest_common_subsequence(first, second) == max(map(len, common))


def test_precision_and_recall_are_the_best_of_different_references():
    # precision 3/4 by the first reference, recall 2/2 by the second
    score = rouge_l("a b c d", ["a x b y c z", "a d"])
    assert score == pytest.approx(2.44 * 0.75 / (1 + 1.44 * 0.75))


def test_extremes():
    assert rouge_l("a b", ["a b"]) == 1 and rouge_l("a b", ["c"]) == 0 and rouge_l("", ["a"]) == 0
    assert rouge_l("a", [""]) == 0
