"""LRP down to a network's inputs: relevance of every pixel and word."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.explain.input_method import InputMethod
from lightning_xai.explain.method import Needs
from lightning_xai.explain.pixel_maps import padding_of
from lightning_xai.explain.recording import Recording
from lightning_xai.explain.relevance_rules import relevance_pass
from lightning_xai.explain.site_relevance import passed_together
from lightning_xai.explain.targets import Targets


def input_relevance(recording: Recording, inputs: Tensor, targets: Targets, from_score: bool = False) -> Tensor:
    """Relevance of the elements of an input of the network: (T, C, h, w) of images, (T, N, C) of embedded words.

    inputs: one of what `relevance_rules(net, table, down_to="inputs")` lists, (B, ...). Relevance starts as 1 at each
    target's score, or as the score itself. Raises RuntimeError when the pass was not made under such rules.
    """

    def passed(share: Targets) -> dict[str, Tensor]:
        start = share.scores.detach() if from_score else torch.ones_like(share.scores)
        with relevance_pass():
            (arrived,) = torch.autograd.grad(share.scores, inputs, start, retain_graph=True, allow_unused=True)
        return {"": (torch.zeros_like(inputs) if arrived is None else arrived)[share.samples].detach()}

    return passed_together(recording, targets, passed)[""]


@dataclass(frozen=True)
class FullLRP(InputMethod):
    """Relevance followed down to the inputs, summed over the pixels of each patch or the features of each word: (T, N).

    rules: "plain" as in the comparison of Chefer et al., or another table. from_score: relevance starts as the score
    instead of 1. Badly conditioned in deep networks: run the network in float64. See `InputMethod`.
    Source: Bach et al., PLOS ONE 2015, with the rules of Chefer et al., CVPR 2021, for transformers.
    """

    rules: str = "plain"
    from_score: bool = False

    @property
    def needs(self) -> Needs:
        return Needs(rules=self.rules, down_to="inputs")

    def inputs(self, recording: Recording) -> Sequence[Tensor]:
        return recording.ruled.inputs

    def words(self, recording: Recording) -> Sequence[Tensor]:
        if not recording.ruled.embeddings:
            raise LookupError("no embedding of an integer input was met, so the network's words have no relevance")
        return recording.ruled.embeddings

    def attributed(self, recording: Recording, targets: Targets, given: Tensor) -> Tensor:
        recording.ruled.padding = padding_of(recording, given) if given.dim() == 4 else None
        return input_relevance(recording, given, targets, self.from_score)
