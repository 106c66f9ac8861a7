"""The ways in which networks compute dense attention, each with its probabilities made visible."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class DotProductCall:
    """One call of `scaled_dot_product_attention`, with its arguments.

    query: (B, H, Q, C) or, flat, (B * H, Q, C). heads: H of the flat form.
    """

    heads: int
    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def probabilities(self) -> Tensor:
        """softmax(Q K^T * scale + mask): (B, H, Q, K), at least in float32; a query that may read nothing has zeros."""
        scale = self.query.shape[-1] ** -0.5 if self.scale is None else self.scale
        logits = (self.query * scale) @ self._for_each_head(self.key).transpose(-1, -2)
        mask = self.attn_mask
        if self.is_causal:
            mask = logits.new_ones(logits.shape[-2:], dtype=torch.bool).tril()
        if mask is None:
            return with_heads(_softmax(logits), self.heads)
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=logits.dtype).masked_fill(~mask, -torch.inf)
        blind = (mask == -torch.inf).all(-1, keepdim=True)
        logits = logits + mask.masked_fill(blind, 0)
        return with_heads(_softmax(logits).masked_fill(blind, 0), self.heads)

    def output(self, probabilities: Tensor) -> Tensor:
        """The values mixed by probabilities (B, H, Q, K), in the shape that the network expects."""
        value = self._for_each_head(self.value)
        probabilities = F.dropout(probabilities, self.dropout_p) if self.dropout_p else probabilities
        if self.query.dim() == 3:
            probabilities = probabilities.flatten(0, 1)
        return probabilities.to(value.dtype) @ value

    def _for_each_head(self, tensor: Tensor) -> Tensor:
        if not self.enable_gqa:
            return tensor
        return tensor.repeat_interleave(self.query.shape[-3] // tensor.shape[-3], -3)


@dataclass(frozen=True)
class SoftmaxCall:
    """A softmax over the keys, after which the network itself mixes the values.

    logits: (B, H, Q, K) or, flat, (B * H, Q, K). heads: H of the flat form.
    """

    heads: int
    logits: Tensor
    dtype: torch.dtype | None = None

    def probabilities(self) -> Tensor:
        """(B, H, Q, K)."""
        return with_heads(torch.softmax(self.logits, -1, dtype=self.dtype), self.heads)

    def output(self, probabilities: Tensor) -> Tensor:
        """The probabilities, in the shape that the network expects."""
        return probabilities if self.logits.dim() == 4 else probabilities.flatten(0, 1)


DenseAttentionCall = DotProductCall | SoftmaxCall


@dataclass(frozen=True)
class _RememberingCall(DotProductCall):
    """A dot-product attention that keeps the probabilities which it was made with."""

    used: list[Tensor] = field(default_factory=list)

    def output(self, probabilities: Tensor) -> Tensor:
        self.used.append(probabilities)
        return super().output(probabilities)


def multi_head_attention(handle: Callable[[DotProductCall], Tensor], *args, **kwargs) -> tuple[Tensor, Tensor | None]:
    """`torch.nn.functional.multi_head_attention_forward` with its attention handed to `handle`.

    The function itself would compute attention where no function mode sees it. Arguments and results are its own.
    """
    given = _MULTI_HEAD.bind(*args, **kwargs)
    given.apply_defaults()
    a = given.arguments
    if a["static_k"] is not None or a["static_v"] is not None:
        raise ValueError("multi_head_attention_forward with static_k or static_v cannot be recorded; pass keys instead")
    sequences = [a[name] for name in ("query", "key", "value")]
    batched = sequences[0].dim() == 3
    if not batched:
        sequences = [sequence.unsqueeze(1) for sequence in sequences]
    if a["use_separate_proj_weight"]:
        weights = [a[name] for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")]
    else:
        weights = a["in_proj_weight"].chunk(3)
    biases = (None,) * 3 if a["in_proj_bias"] is None else a["in_proj_bias"].chunk(3)
    q, k, v = (F.linear(*each) for each in zip(sequences, weights, biases, strict=True))  # (N, B, H * C)
    B, H = q.shape[1], a["num_heads"]
    if a["bias_k"] is not None:
        k, v = (torch.cat([x, bias.expand(1, B, -1)]) for x, bias in ((k, a["bias_k"]), (v, a["bias_v"])))
    q, k, v = (x.unflatten(-1, (H, -1)).permute(1, 2, 0, 3) for x in (q, k, v))
    if a["add_zero_attn"]:
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))

    call = _RememberingCall(H, q, k, v, _mask(a, batched, q, k), a["dropout_p"] if a["training"] else 0.0)
    mixed = handle(call).permute(2, 0, 1, 3).flatten(2)  # (Q, B, H * C)
    output = F.linear(mixed, a["out_proj_weight"], a["out_proj_bias"])
    probabilities = None
    if a["need_weights"]:
        probabilities = call.used[0].mean(1) if a["average_attn_weights"] else call.used[0]
    if not batched:
        output = output.squeeze(1)
        probabilities = None if probabilities is None else probabilities.squeeze(0)
    return output, probabilities


def with_heads(flat: Tensor, heads: int) -> Tensor:
    """(B * H, Q, K) as (B, H, Q, K); what has four dimensions stays as it is."""
    return flat if flat.dim() == 4 else flat.unflatten(0, (-1, heads))


_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


def _mask(a: dict, batched: bool, q: Tensor, k: Tensor) -> Tensor | None:
    """What is added to the logits, broadcast to (B, H, Q, K): minus infinity where nothing may be read."""
    masks = []
    if a["attn_mask"] is not None:
        mask = _additive(a["attn_mask"], q.dtype)
        masks.append(mask if mask.dim() == 2 else mask.unflatten(0, (q.shape[0], -1)))
    if a["key_padding_mask"] is not None:
        mask = a["key_padding_mask"] if batched else a["key_padding_mask"].unsqueeze(0)
        masks.append(_additive(mask, q.dtype)[:, None, None])
    if not masks:
        return None
    # Keys that the function itself appends are visible to all.
    return sum(F.pad(mask, (0, k.shape[2] - mask.shape[-1])) for mask in masks)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
