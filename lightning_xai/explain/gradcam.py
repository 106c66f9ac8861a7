"""Grad-CAM on attention: the heads' attention maps, weighted by the mean of their gradients."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_xai.explain.influence import influencing_tokens
from lightning_xai.explain.linear_maps import DenseMap
from lightning_xai.explain.method import Method
from lightning_xai.explain.raw_attention import chosen_records
from lightning_xai.explain.recording import AttentionRecord, Record, Recording
from lightning_xai.explain.row_propagation import sources_of
from lightning_xai.explain.targets import Targets


@dataclass(frozen=True)
class AttentionGradCAM(Method):
    """relu(mean over heads of w_h A_h), w_h the mean of head h's gradient, the row that is read out: (T, N).

    layer: which of the attentions between two streams, negative from the last. mean_over: "all" takes the mean over
    all queries and keys, "row" over the read row alone, without its own token. Queries without influence on what is
    read and keys that a mask hides, the padding, are left out of the mean.
    Source: Selvaraju et al., ICCV 2017; "all" as for DETR in Chefer et al., ICCV 2021, "row" as for ViT in Chefer et
    al., CVPR 2021. Raises ValueError for a layer that does not exist.
    """

    layer: int = -1
    mean_over: Literal["all", "row"] = "all"

    def __post_init__(self):
        if self.mean_over not in ("all", "row"):
            raise ValueError(f"mean_over is {self.mean_over!r}, expected 'all' or 'row'")
        if not isinstance(self.layer, int):
            raise ValueError(f"layer is {self.layer!r}, expected a number, negative from the last layer")

    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        chosen = [
            (source, rows, *chosen_records(recording, stream, source, self.layer))
            for stream, rows in targets.rows.items()
            for source in sources_of(recording.sites, stream)
            if recording.of(stream, source)
        ]
        present = influencing_tokens(recording, targets.rows, targets.samples)
        keys = {
            record.site.module: record.read_by(present[record.site.writes], targets.samples) for _, _, record in chosen
        }
        # the mean over keys can be taken at once where they are the same for all targets of a sample
        alike = all((keys[record.site.module] == record.read[targets.samples]).all() for _, _, record in chosen)
        reduce = (lambda record, gradient: self._over_keys(record, gradient, record.read)) if alike else _as_it_is
        gradients = recording.reduced_gradients(targets, reduce, list(keys))
        result: dict[str, Tensor] = {}
        for source, rows, record in chosen:
            means = gradients[record.site.module]
            if not alike:
                means = self._over_keys(record, means, keys[record.site.module])
            if self.mean_over == "all":
                queries = present[record.site.writes][:, None]
                means = ((means * queries).sum(-1, keepdim=True) / queries.sum(-1, keepdim=True)).expand_as(means)
            result[source] = _weighted_rows(record, means, targets.samples, rows) + result.get(source, 0)
        return result

    def _over_keys(self, record: Record, gradient: Tensor, keys: Tensor) -> Tensor:
        """The mean of gradients (T, ...) of each head and query over the keys (T, K) that are there: (T, H, Q)."""
        if not isinstance(record, AttentionRecord):
            return gradient.mean((-2, -1)).transpose(1, 2)
        read = keys.to(gradient.dtype)[:, None, None]  # (T, 1, 1, K)
        total, count = (gradient * read).sum(-1), read.sum(-1)
        if self.mean_over == "row" and record.site.writes == record.site.reads:
            total, count = total - gradient.diagonal(dim1=-2, dim2=-1) * read[:, :, 0], count - read[:, :, 0]
        return total / count.clamp(min=1)


def _as_it_is(record: Record, gradient: Tensor) -> Tensor:
    return gradient


def _weighted_rows(record: Record, means: Tensor, samples: Tensor, rows: Tensor) -> Tensor:
    """What is read of relu(mean over heads of means (T, H, Q) times the attention): (T, K)."""
    each = torch.arange(len(rows), device=rows.device)
    if isinstance(record, AttentionRecord):
        if not rows.is_floating_point():
            row = record.probabilities[samples, :, rows]  # (T, H, K)
            return (row * means[each, :, rows][..., None]).mean(1).relu()
        return DenseMap((record.probabilities[samples] * means[..., None]).mean(1).relu()).rows(rows)
    weights = record.attention_weights[samples] * means.transpose(1, 2)[..., None, None]
    operator = record.averaged(weights, samples)
    if not rows.is_floating_point():
        return operator.rows(rows).relu()
    identity = torch.eye(record.queries, dtype=operator.dtype, device=rows.device).expand(len(rows), -1, -1)
    return DenseMap(operator.mix_back(identity).relu()).rows(rows)
