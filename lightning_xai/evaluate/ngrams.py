"""Runs of n words, counted."""

from collections import Counter
from collections.abc import Sequence

Ngram = tuple[str, ...]


def count_ngrams(words: Sequence[str], longest: int = 4) -> list[Counter[Ngram]]:
    """How often each run of 1, 2, ... `longest` words occurs: one counter for each length."""
    return [
        Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1)) for n in range(1, longest + 1)
    ]
