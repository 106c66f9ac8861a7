"""Image-text retrieval: which text fits an image best, and which image a text."""

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_xai.evaluate.image_scores import ImageScores

RANKS = (1, 5)


class RetrievalScores:
    """Recall at 1 and 5 over all pairs of an evaluation, in both directions; exact on any number of processes.

    Image i counts for `image_to_text_r5` if fewer than five other texts are as similar to it (cosine) as its own, or
    more: a network whose features are all alike, or not finite, finds nothing. Texts of the same words count as one.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._scores = ImageScores()

    def update(self, index: Tensor, image_features: Tensor, text_features: Tensor, texts: Sequence[str]) -> None:
        """index: (B,), each pair's own number. Features: (B, C), of any length."""
        columns = {
            "image": F.normalize(image_features.detach().float(), dim=1),
            "text": F.normalize(text_features.detach().float(), dim=1),
            "words": torch.tensor([_number_of(text) for text in texts]),
        }
        self._scores.add(index.tolist(), columns)

    def compute(self) -> dict[str, float]:
        """The four recalls, shares of all pairs; a collective call, the same numbers on each process."""
        gathered = self._scores.gathered()
        image, text, words = gathered["image"].double(), gathered["text"].double(), gathered["words"]
        return {
            **_recalls("image_to_text", image, text, words),
            **_recalls("text_to_image", text, image, words),
        }


def _recalls(name: str, asked: Tensor, answers: Tensor, words: Tensor, rows: int = 512) -> dict[str, float]:
    """Recalls of answers (N, C) by what is asked (N, C), `rows` at a time so that N x N need not fit into memory."""
    rivals = []
    for first in range(0, len(asked), rows):
        part = slice(first, first + rows)
        cosines = asked[part] @ answers.T
        own = (asked[part] * answers[part]).sum(1, keepdim=True)
        same = words[part, None] == words
        # an identical text is no rival, whatever the last digits of its features say; NaN is less than nothing
        rivals.append((~(cosines < own - 1e-6) & ~same).sum(1))
    counts = torch.cat(rivals)
    return {f"{name}_r{rank}": float((counts < rank).double().mean()) for rank in RANKS}


def _number_of(text: str) -> int:
    """A number of 63 bits that is the same for equal texts on every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
