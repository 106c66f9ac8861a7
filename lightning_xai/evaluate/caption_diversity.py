"""How much several captions of one image differ from each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lightning_xai.evaluate.bleu import bleu_counts, bleu_of
from lightning_xai.evaluate.cider import NgramRarity, cider_d
from lightning_xai.evaluate.ngrams import count_ngrams

MOST_CAPTIONS = 5  # of one image, as papers count


def self_cider_kernel(captions: Sequence[str], rarity: NgramRarity) -> np.ndarray:
    """(n, n) CIDEr-D of caption i against caption j for i <= j, mirrored below; 10 on the diagonal from 4 words on."""
    weighted = [rarity.weighted(caption) for caption in captions]
    kernel = np.zeros((len(captions), len(captions)))
    for row, caption in enumerate(weighted):
        for column in range(row, len(weighted)):
            kernel[row, column] = kernel[column, row] = cider_d(caption, [weighted[column]])
    return kernel


def self_cider(kernel: np.ndarray) -> float:
    """Self-CIDEr: `-log_n(max sqrt(s) / sum sqrt(s))` for the singular values s of the kernel (n, n), 0 to 1.

    0 where all n captions are alike, 1 where none has anything in common. Raises ValueError for fewer than two
    captions, and where the kernel is all zero: no caption has a word that the corpus tells apart.
    Source: Wang and Chan, "Describing like humans: on diversity in image captioning" (2019).
    """
    if len(kernel) < 2:
        raise ValueError(f"{len(kernel)} caption(s) of an image have no diversity; give at least two.")
    roots = np.sqrt(np.linalg.svd(kernel, compute_uv=False))
    if roots.sum() == 0:
        raise ValueError("the kernel is all zero: take what is rare from a corpus of at least two images.")
    return float(-math.log(roots.max() / roots.sum()) / math.log(len(kernel)))


def mutual_bleu(captions: Sequence[str]) -> list[float]:
    """mBLEU-1 to mBLEU-4: BLEU of each caption against the others, averaged; 1 where all are alike.

    Raises ValueError for fewer than two captions.
    """
    if len(captions) < 2:
        raise ValueError(f"{len(captions)} caption(s) of an image have no mutual BLEU; give at least two.")
    scores = [
        bleu_of(bleu_counts(caption, [*captions[:place], *captions[place + 1 :]]))
        for place, caption in enumerate(captions)
    ]
    return [sum(column) / len(scores) for column in zip(*scores, strict=True)]


def distinct_ngrams(captions: Sequence[str], n: int) -> float:
    """Div-n: different runs of n words over all words of the captions; 0 for captions without words.

    Source: Li et al., "A diversity-promoting objective function" (2016), as image captioning uses it.
    """
    spoken = [caption.split() for caption in captions]
    words = sum(map(len, spoken))
    different = set().union(*(count_ngrams(caption, n)[n - 1] for caption in spoken))
    return len(different) / words if words else 0.0


def diversity_scores(captions: Sequence[Sequence[str]], rarity: NgramRarity) -> dict[str, float]:
    """The means over images of Self-CIDEr, mBLEU-1 to 4, Div-1 and Div-2.

    captions: several of each image; rarity: of a corpus of references, see `NgramRarity`. Captions without a word that
    the corpus tells apart count as alike. Raises ValueError for none, and for a corpus of fewer than two images.
    """
    if not captions:
        raise ValueError("there are no captions; give several of each image.")
    if rarity.log_images == 0:
        raise ValueError("a corpus of one image tells no word from another; take what is rare from at least two.")
    rows = []
    for of_image in captions:
        kernel = self_cider_kernel(of_image, rarity)
        rows.append(
            {
                "Self-CIDEr": self_cider(kernel) if kernel.any() else 0.0,
                **{f"mBLEU-{n}": score for n, score in enumerate(mutual_bleu(of_image), 1)},
                "Div-1": distinct_ngrams(of_image, 1),
                "Div-2": distinct_ngrams(of_image, 2),
            }
        )
    return {title: sum(row[title] for row in rows) / len(rows) for title in rows[0]}


def diversity_by_source(
    sources: Mapping[str, Iterable[Sequence[str]]], references: Iterable[Sequence[str]], most: int = MOST_CAPTIONS
) -> dict[str, float]:
    """Self-CIDEr, Div-1 and Div-2 of each source of several captions, as "Self-CIDEr/<source>" and so on.

    sources: by name, the captions of each image; those without a second caption are left out, and a source where no
    image has one. Of an image the first `most` count, because more captions repeat more words. references: of each
    image; with fewer than two images nothing is rare, and the result is empty.
    """
    corpus = list(references)
    if len(corpus) < 2:
        return {}
    rarity = NgramRarity(corpus)
    found = {}
    for source, captions in sources.items():
        several = [of_image[:most] for of_image in captions if len(of_image) > 1]
        if several:
            scores = diversity_scores(several, rarity)
            found |= {f"{title}/{source}": scores[title] for title in ("Self-CIDEr", "Div-1", "Div-2")}
    return found
