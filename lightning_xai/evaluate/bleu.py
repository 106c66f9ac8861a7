"""BLEU: how many of a caption's runs of words its references have too."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lightning_xai.evaluate.ngrams import count_ngrams

# The constants of coco-caption, which decide what a caption without a common run scores.
TINY, SMALL = 1e-15, 1e-9


class BleuCounts(NamedTuple):
    """What BLEU needs of one caption or, added up, of a corpus."""

    right: tuple[int, ...]
    guessed: tuple[int, ...]
    words: int
    reference_words: int

    def __add__(self, other: "BleuCounts") -> "BleuCounts":
        return BleuCounts(
            tuple(map(sum, zip(self.right, other.right, strict=True))),
            tuple(map(sum, zip(self.guessed, other.guessed, strict=True))),
            self.words + other.words,
            self.reference_words + other.reference_words,
        )


def bleu_counts(caption: str, references: Sequence[str], longest: int = 4) -> BleuCounts:
    """Counts of a caption against its references; the reference nearest in length counts, of two the shorter."""
    words, spoken = caption.split(), [reference.split() for reference in references]
    counts = count_ngrams(words, longest)
    of_references = [count_ngrams(reference, longest) for reference in spoken]
    right = tuple(
        sum(min(count, max(other[n][ngram] for other in of_references)) for ngram, count in counts[n].items())
        for n in range(longest)
    )
    guessed = tuple(max(len(words) - n, 0) for n in range(longest))
    nearest = min((abs(len(reference) - len(words)), len(reference)) for reference in spoken)[1]
    return BleuCounts(right, guessed, len(words), nearest)


def bleu_of(counts: BleuCounts) -> list[float]:
    r"""BLEU-1 to BLEU-n: `(prod_k p_k)^(1/n)`, times `exp(1 - r/c)` for c words where the references have r > c.

    Source: Papineni et al., "BLEU" (2002), with the smoothing of coco-caption.
    """
    scores, product = [], 1.0
    for n, (right, guessed) in enumerate(zip(counts.right, counts.guessed, strict=True), 1):
        product *= (right + TINY) / (guessed + SMALL)
        scores.append(product ** (1 / n))
    ratio = (counts.words + TINY) / (counts.reference_words + SMALL)
    return [score * math.exp(1 - 1 / ratio) for score in scores] if ratio < 1 else scores


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]], longest: int = 4) -> list[float]:
    """BLEU-1 to BLEU-`longest` of a corpus, in [0, 1]: counts of all captions, not the mean of their scores.

    captions: one for each image, words between blanks; references: the list of each image.
    """
    counts = [bleu_counts(caption, known, longest) for caption, known in zip(captions, references, strict=True)]
    return bleu_of(sum(counts[1:], counts[0]))
