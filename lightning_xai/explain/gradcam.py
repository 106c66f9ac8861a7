"""Grad-CAM on attention: the heads' attention maps, weighted by the mean of their gradients."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_xai.explain.method import Method
from lightning_xai.explain.raw_attention import chosen_records
from lightning_xai.explain.recording import AttentionRecord, Record, Recording
from lightning_xai.explain.row_propagation import sources_of
from lightning_xai.explain.targets import Targets


@dataclass(frozen=True)
class AttentionGradCAM(Method):
    """relu(mean over heads of w_h A_h), w_h the mean of head h's gradient, the row that is read out: (T, N).

    layer: which of the attentions between two streams, negative from the last. mean_over: "all" takes the mean over
    all queries and keys (keys that a mask hides are left out); "row" over the read row alone, without its own token.
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
            (source, tokens, *chosen_records(recording, stream, source, self.layer))
            for stream, tokens in targets.rows.items()
            for source in sources_of(recording.sites, stream)
            if recording.of(stream, source)
        ]
        reduce = _mean if self.mean_over == "all" else _whole
        modules = [record.site.module for _, _, record in chosen]
        gradients = recording.reduced_gradients(targets, reduce, modules)
        result: dict[str, Tensor] = {}
        for source, tokens, record in chosen:
            heads = gradients[record.site.module]
            if self.mean_over == "row":
                heads = _row_mean(record, heads, tokens)
            result[source] = _weighted_row(record, heads, targets.samples, tokens) + result.get(source, 0)
        return result


def _whole(record: Record, gradient: Tensor) -> Tensor:
    return gradient


def _mean(record: Record, gradient: Tensor) -> Tensor:
    """The mean gradient of each head: (B, H)."""
    if not isinstance(record, AttentionRecord):
        return gradient.mean((1, 3, 4))
    read = record.read[:, None, None]  # (B, 1, 1, K)
    return (gradient * read).sum((2, 3)) / (read.sum((1, 2, 3)) * gradient.shape[2])[:, None]


def _row_mean(record: Record, gradient: Tensor, tokens: Tensor) -> Tensor:
    """The mean gradient of each head in the row of each target's token: (T, H)."""
    each = torch.arange(len(tokens), device=tokens.device)
    if not isinstance(record, AttentionRecord):
        return gradient[each, tokens].mean((-2, -1))
    row = gradient[each, :, tokens]  # (T, H, K)
    if record.site.writes != record.site.reads:
        return row.mean(-1)
    own = torch.nn.functional.one_hot(tokens, row.shape[-1])[:, None].bool()
    return row.masked_fill(own, 0).sum(-1) / (row.shape[-1] - 1)


def _weighted_row(record: Record, heads: Tensor, samples: Tensor, tokens: Tensor) -> Tensor:
    """relu(mean over heads of heads (T, H) times the attention), row tokens[t]: (T, K)."""
    if isinstance(record, AttentionRecord):
        row = record.probabilities[samples, :, tokens]  # (T, H, K)
        return (row * heads[..., None]).mean(1).relu()
    weights = record.attention_weights[samples] * heads[:, None, :, None, None]
    return record.averaged(weights, samples).rows(tokens).relu()
