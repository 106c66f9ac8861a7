"""Explanations whose relevance is known, without a network."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_xai.explain.explainable import Explained
from lightning_xai.explain.explanation import Explanation
from lightning_xai.explain.streams import Patches, Stream
from lightning_xai.explain.targets import Targets


def _explained_maps(
    maps: Tensor, samples: list[int] | None = None, objects: list[int] | None = None, classes: list[int] | None = None
) -> tuple[Explanation, Explained]:
    """Relevance (T, h, w) of the patches of an image with one token before them, of the first T samples by default."""
    count, h, w = maps.shape
    samples = torch.tensor(range(count) if samples is None else samples)
    scores = torch.zeros(count)
    relevance = torch.cat([torch.full((count, 1), 99.0), maps.flatten(1)], 1)
    streams = {"image": Stream("image", Patches((h, w), prefix=1))}
    targets = Targets(scores, samples, {"image": torch.zeros_like(samples)})
    explained = Explained(
        targets,
        tuple(f"target {number}" for number in range(count)),
        torch.tensor([0] * count if classes is None else classes),
        objects=None if objects is None else torch.tensor(objects),
    )
    return Explanation({"image": relevance}, streams, samples, scores), explained


@pytest.fixture
def explained_maps() -> Callable[..., tuple[Explanation, Explained]]:
    return _explained_maps
