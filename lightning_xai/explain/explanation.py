"""What a method says about the tokens of each stream, and how that is laid on pixels and words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_xai.explain.attention_map import merged_map
from lightning_xai.explain.method import Method
from lightning_xai.explain.seam import declaring_network
from lightning_xai.explain.streams import FeatureLevels, Patches, Stream, Words
from lightning_xai.explain.targets import Targets


@dataclass(frozen=True)
class Explanation:
    """Relevance of T targets.

    relevance: (T, N) of each stream. streams: how their tokens lie. samples: (T,), the sample that each target is of.
    scores: (T,), what was explained.
    """

    relevance: Mapping[str, Tensor]
    streams: Mapping[str, Stream]
    samples: Tensor
    scores: Tensor

    def grid(self, stream: str = "image") -> Tensor:
        """Relevance of the cells of a stream's grid: (T, h, w).

        Tokens before the grid are left out; several feature levels are merged on the finest, with the same sum.
        Raises ValueError where the stream has no grid.
        """
        relevance, layout = self._of(stream)
        if isinstance(layout, Patches):
            return relevance[:, layout.prefix :].unflatten(1, layout.shape)
        if not isinstance(layout, FeatureLevels):
            raise ValueError(f"the tokens of {stream!r} are {type(layout).__name__} and lie on no grid of the image")
        levels = relevance.split([h * w for h, w in layout.shapes], 1)
        maps = [level.unflatten(1, shape) for level, shape in zip(levels, layout.shapes, strict=True)]
        if len(maps) == 1:
            return maps[0]
        return torch.stack([merged_map([level[target] for level in maps]) for target in range(len(relevance))])

    def on_pixels(self, size: tuple[int, int], stream: str = "image") -> Tensor:
        """The grid, enlarged to the (padded) network input of size (h, w): (T, h, w); bilinear, corners not aligned."""
        return F.interpolate(self.grid(stream)[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]

    def words(self, target: int, stream: str = "text") -> list[tuple[str, float]]:
        """The pieces of a target's text with their relevance. Raises ValueError where the stream is no text."""
        relevance, layout = self._of(stream)
        if not isinstance(layout, Words):
            raise ValueError(f"the tokens of {stream!r} are {type(layout).__name__}, not words")
        texts = layout.texts[int(self.samples[target])]
        return list(zip(texts, relevance[target, : len(texts)].tolist(), strict=True))

    def _of(self, stream: str):
        if stream not in self.relevance:
            raise ValueError(f"there is no relevance of {stream!r}; explained are {', '.join(self.relevance)}")
        return self.relevance[stream], self.streams[stream].layout


def min_max(maps: Tensor) -> Tensor:
    """Each map (T, h, w) stretched to [0, 1]; a constant one becomes 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).masked_fill(high == low, 1)


def explain(
    net: nn.Module,
    inputs: Sequence[Any] | Mapping[str, Any],
    target: Callable[[Any], Targets],
    method: Method,
) -> Explanation:
    """Explain what `target` picks from the outputs of net(*inputs), or net(**inputs), by one method.

    Works under no_grad and inference_mode, changes no mode and no gradient. The network out of its parallel wrapper is
    run, so that no collective operation starts. Raises ValueError where the network does not say how its tokens lie.
    """
    inner = declaring_network(net)
    with method.recorded(inner) as recording:
        outputs = inner(**inputs) if isinstance(inputs, Mapping) else inner(*inputs)
        targets = target(outputs)
    relevance = method(recording, targets)
    return Explanation(relevance, recording.streams, targets.samples, targets.scores.detach())
