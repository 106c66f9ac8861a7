"""LRP down to a network's inputs: relevance of every pixel and word."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_xai.explain.method import Method
from lightning_xai.explain.recording import Recording
from lightning_xai.explain.relevance_rules import relevance_pass
from lightning_xai.explain.site_relevance import ruled_recording
from lightning_xai.explain.streams import FeatureLevels, Patches, Words
from lightning_xai.explain.targets import Targets


def input_relevance(inputs: Tensor, targets: Targets, from_score: bool = False) -> Tensor:
    """Relevance of the elements of an input of the network: (T, C, h, w) of images, (T, N, C) of embedded words.

    inputs: one of what `relevance_rules(net, table, down_to="inputs")` lists, (B, ...). Relevance starts as 1 at each
    target's score, or as the score itself. Raises RuntimeError when the pass was not made under such rules.
    """
    found = []
    for index, sample in enumerate(targets.samples.tolist()):
        start = torch.zeros_like(targets.scores)
        start[index] = targets.scores.detach()[index] if from_score else 1.0
        with relevance_pass():
            (arrived,) = torch.autograd.grad(targets.scores, inputs, start, retain_graph=True, allow_unused=True)
        found.append(torch.zeros_like(inputs[sample]) if arrived is None else arrived[sample])
    return torch.stack(found).detach()


def on_grid(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sums of maps (T, h, w) over the cells of a grid of `shape`: (T, rows * columns), with the same total."""
    for axis, cells in ((1, shape[0]), (2, shape[1])):
        size = pixels.shape[axis]
        cell = torch.arange(size, device=pixels.device) * cells // size
        summed = [*pixels.shape]
        summed[axis] = cells
        pixels = pixels.new_zeros(summed).index_add(axis, cell, pixels)
    return pixels.flatten(1)


@dataclass(frozen=True)
class FullLRP(Method):
    """Relevance followed down to the inputs, summed over the pixels of each patch or the features of each word: (T, N).

    Tokens that stand for no part of the image (class tokens, registers) have 0, unless the network's input is tokens.
    Of several feature levels the finest has all. `pixels` gives the image's own map.
    rules: "plain" as in the comparison of Chefer et al., or another table. from_score: relevance starts as the score
    instead of 1. Badly conditioned in deep networks: run the network in float64.
    Source: Bach et al., PLOS ONE 2015, with the rules of Chefer et al., CVPR 2021, for transformers.
    """

    rules: str = "plain"
    from_score: bool = False

    def recorded(self, net: nn.Module) -> AbstractContextManager[Recording]:
        return ruled_recording(net, self.rules, "inputs")

    def pixels(self, recording: Recording, targets: Targets) -> Tensor:
        """Relevance (T, h, w) of each pixel, signed, summed over channels."""
        images = [x for x in recording.ruled.inputs if x.dim() == 4]
        if len(images) != 1:
            raise ValueError(f"the network has {len(images)} inputs of shape (B, C, h, w), expected one image input")
        return input_relevance(images[0], targets, self.from_score).sum(1)

    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for name, stream in recording.streams.items():
            layout = stream.layout
            if isinstance(layout, Patches):
                count = layout.prefix + layout.shape[0] * layout.shape[1]
                tokens = [x for x in recording.ruled.inputs if x.dim() == 3 and x.shape[1] == count]
                if tokens:
                    result[name] = input_relevance(tokens[0], targets, self.from_score).sum(-1)
                    continue
                cells = on_grid(self.pixels(recording, targets), layout.shape)
                result[name] = torch.cat([cells.new_zeros(len(cells), layout.prefix), cells], 1)
            elif isinstance(layout, FeatureLevels):
                pixels = self.pixels(recording, targets)
                finest = max(layout.shapes, key=lambda shape: shape[0] * shape[1])
                levels = [
                    on_grid(pixels if shape == finest else torch.zeros_like(pixels), shape) for shape in layout.shapes
                ]
                result[name] = torch.cat(levels, 1)
            elif isinstance(layout, Words):
                words = recording.ruled.embeddings
                if not words:
                    raise LookupError(f"no embedding of an integer input was met, so the words of {name!r} have none")
                result[name] = input_relevance(words[0], targets, self.from_score).sum(-1)
        if not result:
            kinds = ", ".join(type(stream.layout).__name__ for stream in recording.streams.values())
            raise ValueError(
                f"the network's streams ({kinds}) lie on no input; expected Patches, FeatureLevels or Words"
            )
        return result
