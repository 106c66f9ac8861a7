"""Functions that do several operations at once, written as the operations that relevance rules know."""

from collections.abc import Callable
from types import FunctionType

import torch
import torch.nn.functional as F

from lightning_xai.explain.relevance_operations import SUMS_WITH_PRODUCT


def _scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(F.dropout(torch.softmax(scores, -1), dropout_p), value)


def _baddbmm(input, batch1, batch2, *, beta=1, alpha=1):
    return beta * input + alpha * torch.bmm(batch1, batch2)


def _addmm(input, mat1, mat2, *, beta=1, alpha=1):
    return beta * input + alpha * torch.matmul(mat1, mat2)


def _addcmul(input, tensor1, tensor2, *, value=1):
    return input + value * tensor1 * tensor2


def _addcdiv(input, tensor1, tensor2, *, value=1):
    return input + value * tensor1 / tensor2


def _seen_by_modes(function: FunctionType) -> FunctionType:
    """The same Python function with a body whose calls reach the function modes.

    Functions of torch.nn.functional ask once whether anybody overrides them and, if so, run outside all modes.
    """
    names = {**function.__globals__, "has_torch_function": lambda tensors: False}
    seen = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    seen.__kwdefaults__ = function.__kwdefaults__
    return seen


# From a function to one that gives the same by several calls, each of which can have a rule.
DECOMPOSED: dict[Callable, Callable] = {
    F.scaled_dot_product_attention: _scaled_dot_product_attention,
    F.multi_head_attention_forward: _seen_by_modes(F.multi_head_attention_forward),
    **dict.fromkeys(SUMS_WITH_PRODUCT["baddbmm"], _baddbmm),
    **dict.fromkeys(SUMS_WITH_PRODUCT["addmm"], _addmm),
    **dict.fromkeys(SUMS_WITH_PRODUCT["addcmul"], _addcmul),
    **dict.fromkeys(SUMS_WITH_PRODUCT["addcdiv"], _addcdiv),
}
