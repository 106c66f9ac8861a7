"""CIDEr and CIDEr-D: how alike a caption and its references are in what is particular to their image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lightning_xai.evaluate.ngrams import Ngram, count_ngrams

LONGEST, SIGMA = 4, 6.0


class Weighted(NamedTuple):
    """A sentence as tf-idf vectors of its runs of 1 to 4 words, their norms, and its length in pairs of words."""

    vectors: list[dict[Ngram, float]]
    norms: list[float]
    length: int


class NgramRarity:
    """In how many images' references each run of words occurs.

    corpus: the references of each image. With a single image every run is as common as can be, so all scores are 0.
    Raises ValueError for an empty corpus.
    """

    def __init__(self, corpus: Iterable[Sequence[str]]):
        self.images_with: Counter[Ngram] = Counter()
        images = list(corpus)
        for references in images:
            known: set[Ngram] = set()
            for reference in references:
                known.update(*count_ngrams(reference.split(), LONGEST))
            self.images_with.update(known)
        if not images:
            raise ValueError("the corpus that tells rare words from common ones has no image.")
        self.log_images = math.log(len(images))

    def weighted(self, sentence: str) -> Weighted:
        """Each run's count times `ln(images) - ln(max(1, images that have it))`."""
        counts = count_ngrams(sentence.split(), LONGEST)
        vectors = [{ngram: count * self._rarity(ngram) for ngram, count in of.items()} for of in counts]
        norms = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in vectors]
        # coco-caption measures length in pairs of words, so the penalty does
        return Weighted(vectors, norms, sum(counts[1].values()))

    def _rarity(self, ngram: Ngram) -> float:
        return self.log_images - math.log(max(1, self.images_with[ngram]))


def cider_d(caption: Weighted, references: Sequence[Weighted]) -> float:
    """CIDEr-D of one caption, 0 to 10: what coco-caption and most papers call CIDEr.

    `10 mean_ref exp(-(l_c - l_r)^2 / 2 sigma^2) mean_n sum min(c, r) r / |c| |r|` with sigma = 6.
    Source: Vedantam et al., "CIDEr" (2015), section 5.
    """
    total = 0.0
    for reference in references:
        penalty = math.exp(-((caption.length - reference.length) ** 2) / (2 * SIGMA**2))
        total += penalty * sum(_cosines(caption, reference, clipped=True)) / LONGEST
    return 10 * total / len(references)


def cider(caption: Weighted, references: Sequence[Weighted]) -> float:
    """CIDEr of one caption, 0 to 10, without clipping and length penalty: Vedantam et al., equations 2 and 3."""
    return 10 * sum(sum(_cosines(caption, reference)) / LONGEST for reference in references) / len(references)


def _cosines(caption: Weighted, reference: Weighted, clipped: bool = False) -> Iterable[float]:
    for mine, theirs, norm, other_norm in zip(
        caption.vectors, reference.vectors, caption.norms, reference.norms, strict=True
    ):
        shared = 0.0
        for ngram, weight in mine.items():
            other = theirs.get(ngram, 0.0)
            shared += (min(weight, other) if clipped else weight) * other
        yield shared / (norm * other_norm) if norm and other_norm else shared


def cider_scores(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    rarity: NgramRarity | None = None,
    score=cider_d,
) -> list[float]:
    """`score` of each caption against its references; what is rare is told from `rarity`, or from all references."""
    rarity = rarity or NgramRarity(references)
    return [
        score(rarity.weighted(caption), [rarity.weighted(reference) for reference in known])
        for caption, known in zip(captions, references, strict=True)
    ]
