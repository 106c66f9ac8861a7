"""Partial LRP: the relevance at one layer's attention weights."""

from dataclasses import dataclass

from torch import Tensor

from lightning_xai.explain.explanation import min_max
from lightning_xai.explain.method import Method, Needs
from lightning_xai.explain.raw_attention import chosen_records
from lightning_xai.explain.recording import Record, Recording
from lightning_xai.explain.row_propagation import read_rows, sources_of
from lightning_xai.explain.site_relevance import reduced_gradients_and_relevances
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

    @property
    def needs(self) -> Needs:
        return Needs(rules=self.rules)

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
            row = operator.mix_back(read_rows(targets.rows[stream], operator, record.queries))[:, 0]
            result[source] = row + result.get(source, 0)
        return result

    def _reduced(self, record: Record, gradient: Tensor | None, relevance: Tensor) -> Tensor:
        if gradient is not None:
            relevance = gradient * relevance
        if self.positive or gradient is not None:
            relevance = relevance.clamp(min=0)
        weights = record.over_heads(relevance)
        return min_max(weights.flatten(2)).view_as(weights) if self.scaled else weights
