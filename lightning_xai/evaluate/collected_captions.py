"""Captions of an evaluation, each counted once however many processes wrote them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.distributed as dist


class WrittenCaptions(NamedTuple):
    """Captions and references by the name of their sample, in the order of the data set.

    sentences: all captions of a sample, the best first; images: the names of each image's samples.
    """

    predictions: dict[str, str]
    references: dict[str, list[str]]
    sentences: dict[str, tuple[str, ...]]
    images: dict[str, list[str]]


class CollectedCaptions:
    """Captions with their references, collected over batches and processes."""

    def __init__(self) -> None:
        self._samples: dict[int, tuple[str, tuple[str, ...], list[str], str]] = {}

    def add(
        self,
        index: Sequence[int],
        names: Sequence[str],
        captions: Sequence[Sequence[str]],
        references: Sequence[Sequence[str]],
        images: Sequence[str] | None = None,
    ) -> None:
        """Add B samples by their numbers in the data set; a number that is already there is ignored.

        captions: one or more of each sample, the best first. images: what each sample is of (default: of its own).
        """
        for number, name, said, known, image in zip(index, names, captions, references, images or names, strict=True):
            self._samples.setdefault(int(number), (name, tuple(said), list(known), image))

    def gathered(self) -> WrittenCaptions:
        """All samples; a collective call, the same on each process. Raises ValueError for none, or for equal names."""
        parts = [self._samples]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            parts = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, self._samples)
        samples = {number: sample for part in reversed(parts) for number, sample in part.items()}
        if not samples:
            raise ValueError("no caption was written: add some before they are gathered.")
        written = WrittenCaptions({}, {}, {}, {})
        for number in sorted(samples):
            name, said, known, image = samples[number]
            if name in written.predictions:
                raise ValueError(f"two samples are called {name!r}; names must differ to be scored.")
            written.predictions[name], written.references[name], written.sentences[name] = said[0], known, said
            written.images.setdefault(image, []).append(name)
        return written
