"""ROUGE-L: the longest sequence of words that a caption and a reference have in common."""

from collections.abc import Sequence

BETA = 1.2


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """How many words of both, in the same order, can be chosen at most."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, 1):
            diagonal, row[place] = row[place], diagonal + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]


def rouge_l(caption: str, references: Sequence[str]) -> float:
    """ROUGE-L of one caption in [0, 1]: `(1 + b^2) P R / (R + b^2 P)` with b = 1.2.

    P and R are the largest share of the caption's and of a reference's words, each over all references on its own.
    Source: Lin, "ROUGE" (2004), as in coco-caption.
    """
    words = caption.split()
    spoken = [reference.split() for reference in references]
    common = [longest_common_subsequence(reference, words) for reference in spoken]
    precision = max(common) / max(len(words), 1)
    recall = max(count / max(len(reference), 1) for count, reference in zip(common, spoken, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
