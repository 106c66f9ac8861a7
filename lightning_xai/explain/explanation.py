"""What a method says about the tokens of each stream, and how that is laid on pixels and words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_xai.explain.attention_map import merged_map
from lightning_xai.explain.method import Method
from lightning_xai.explain.recording import Recording
from lightning_xai.explain.seam import declaring_network
from lightning_xai.explain.streams import ChosenPatches, FeatureLevels, Patches, Stream, Words
from lightning_xai.explain.targets import Targets


@dataclass(frozen=True)
class Explanation:
    """Relevance of T targets.

    relevance: (T, N) of each stream. streams: how their tokens lie. samples: (T,), the sample that each target is of.
    scores: (T,), what was explained. pixels: of streams whose pixels a method explains by themselves, (T, h, w).
    """

    relevance: Mapping[str, Tensor]
    streams: Mapping[str, Stream]
    samples: Tensor
    scores: Tensor
    pixels: Mapping[str, Tensor] = field(default_factory=dict)

    def grid(self, stream: str = "image") -> Tensor:
        """Relevance of the cells of a stream's grid: (T, h, w).

        Tokens before the grid are left out; several feature levels are merged on the finest, with the same sum.
        Raises ValueError where the stream has no grid.
        """
        relevance, layout = self._of(stream)
        if isinstance(layout, Patches):
            return relevance[:, layout.prefix :].unflatten(1, layout.shape)
        if isinstance(layout, ChosenPatches):
            cells = relevance.new_zeros(len(relevance), layout.shape[0] * layout.shape[1])
            chosen = layout.cells.to(relevance.device)[self.samples]
            return cells.scatter(1, chosen, relevance[:, layout.prefix :]).unflatten(1, layout.shape)
        if not isinstance(layout, FeatureLevels):
            raise ValueError(f"the tokens of {stream!r} are {type(layout).__name__} and lie on no grid of the image")
        levels = relevance.split([h * w for h, w in layout.shapes], 1)
        maps = [level.unflatten(1, shape) for level, shape in zip(levels, layout.shapes, strict=True)]
        if len(maps) == 1:
            return maps[0]
        return torch.stack([merged_map([level[target] for level in maps]) for target in range(len(relevance))])

    def on_pixels(self, size: tuple[int, int], stream: str = "image") -> Tensor:
        """Relevance of the pixels of the (padded) network input of size (h, w): (T, h, w).

        The method's own where it explains pixels, else the grid; enlarged bilinearly, corners not aligned.
        """
        maps = self.pixels[stream] if stream in self.pixels else self.grid(stream)
        if maps.shape[1:] == tuple(size):
            return maps
        return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]

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


def min_max(maps: Tensor, valid: Tensor | None = None) -> Tensor:
    """(m - min) / (max - min) of each map (T, h, w): in [0, 1], 0 everywhere in a constant one.

    valid: (T, h, w), the cells that count; the others are stretched along.
    """
    least, most = (maps, maps) if valid is None else (maps.where(valid, torch.inf), maps.where(valid, -torch.inf))
    low, high = least.amin((-2, -1), keepdim=True), most.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).masked_fill(high <= low, 1)


def explain(
    net: nn.Module,
    inputs: Sequence[Any] | Mapping[str, Any],
    target: Callable[[Any], Targets],
    method: Method,
) -> Explanation:
    """Explain what `target` picks from the outputs of net(*inputs), or net(**inputs), by one method.

    Works under no_grad and inference_mode; the network is in eval mode meanwhile, and no mode, gradient or random state
    is changed. The network out of its parallel wrapper is run, so that no collective operation starts.
    Raises LookupError where the network does not say how its tokens lie.
    """
    inner = declaring_network(net)
    with method.recorded(inner) as recording:
        outputs = inner(**inputs) if isinstance(inputs, Mapping) else inner(*inputs)
        targets = target(outputs)
    return explained_by(method, recording, targets)


def explained_by(method: Method, recording: Recording, targets: Targets) -> Explanation:
    """What a method says about a recorded pass.

    Raises LookupError where the network does not say how its tokens lie.
    """
    relevance, pixels = method.with_pixels(recording, targets)
    return Explanation(relevance, recording.streams, targets.samples, targets.scores.detach(), pixels)
