"""Partial LRP: the relevance at one layer's attention weights."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_xai.explain.method import Method
from lightning_xai.explain.raw_attention import chosen_records
from lightning_xai.explain.recording import Record, Recording
from lightning_xai.explain.row_propagation import sources_of, unit_rows
from lightning_xai.explain.site_relevance import head_mean, reduced_gradients_and_relevances, ruled_recording
from lightning_xai.explain.targets import Targets


@dataclass(frozen=True)
class PartialLRP(Method):
    """mean over heads of the relevance C at one layer's attention weights, the read row of it: (T, N).

    layer: which of the attentions between two streams, negative from the last. positive: relu(C) before the mean, as
    for ViT; DETR and LXMERT keep the sign. gradient: relu(G * C) instead, G the gradient of the target's score.
    scaled: (C - min) / (max - min) over the whole matrix of the target, as for DETR and LXMERT.
    rules: "plain" as for ViT, "chefer_conserving" as for DETR and LXMERT, or another table.
    Source: Voita et al., ACL 2019, as the baseline of Chefer et al., CVPR and ICCV 2021.
    """

    rules: str = "plain"
    layer: int = -1
    positive: bool = True
    gradient: bool = False
    scaled: bool = False

    def recorded(self, net: nn.Module) -> AbstractContextManager[Recording]:
        return ruled_recording(net, self.rules)

    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        chosen = {}
        for stream in targets.rows:
            for source in sources_of(recording.sites, stream):
                if recording.of(stream, source):
                    (chosen[stream, source],) = chosen_records(recording, stream, source, self.layer)
        modules = list(dict.fromkeys(record.site.module for record in chosen.values()))
        reduced = reduced_gradients_and_relevances(recording, targets, self._reduced, modules, self.gradient)
        result: dict[str, Tensor] = {}
        for (stream, source), record in chosen.items():
            operator = record.averaged(reduced[record.site.module], targets.samples)
            row = operator.mix_back(unit_rows(targets.rows[stream], operator, record.queries))[:, 0]
            result[source] = row + result.get(source, 0)
        return result

    def _reduced(self, record: Record, gradient: Tensor | None, relevance: Tensor) -> Tensor:
        if gradient is not None:
            relevance = gradient * relevance
        if self.positive or gradient is not None:
            relevance = relevance.clamp(min=0)
        weights = head_mean(record, relevance)
        if not self.scaled:
            return weights
        axes = tuple(range(1, weights.dim()))
        least, greatest = (bound(weights, axes, keepdim=True) for bound in (torch.amin, torch.amax))
        return (weights - least) / (greatest - least).masked_fill(greatest == least, 1)  # a constant map becomes 0
