"""The rules of AttnLRP for what is neither a linear map nor a product: softmax, and norms by the epsilon rule."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_xai.explain.relevance_rules import Operation

EPSILON = 1e-9


def epsilon_quotient(a: Tensor, b: Tensor) -> Tensor:
    """a / (b + 1e-9 sign b)."""
    return a / torch.where(b < 0, b - EPSILON, b + EPSILON)


def taylor_softmax(operation: Operation, relevance: Tensor) -> Sequence[Tensor]:
    """R_x = x (R - p sum R), p the probabilities (AttnLRP, proposition 3.1); masked scores take nothing."""
    (x,), p = operation.inputs, operation.output
    axis = operation.kwargs.get("dim", operation.args[1] if len(operation.args) > 1 else -1)
    finite = torch.where(torch.isinf(x), 0.0, x)
    return [(finite * (relevance - p * relevance.sum(axis, keepdim=True))).detach()]


def epsilon_layer_norm(operation: Operation, relevance: Tensor) -> Sequence[Tensor]:
    """(x - mean) w / std + b by the epsilon rule, the standard deviation taken as given (AttnLRP, proposition 3.4)."""
    given = _named(operation, ("input", "normalized_shape", "weight", "bias", "eps"))
    axes = tuple(range(-len(given["normalized_shape"]), 0))
    return [_through_centring(operation, relevance, axes, given.get("weight"), given.get("bias"), given.get("eps"))]


def epsilon_group_norm(operation: Operation, relevance: Tensor) -> Sequence[Tensor]:
    """As of layer norms, over each group of channels (B, C, ...)."""
    given = _named(operation, ("input", "num_groups", "weight", "bias", "eps"))
    channels = (-1, *(1 for _ in operation.inputs[0].shape[2:]))
    affine = (None if given.get(name) is None else given[name].view(channels) for name in ("weight", "bias"))
    return [_through_centring(operation, relevance, None, *affine, given.get("eps"), groups=given["num_groups"])]


def _named(operation: Operation, names: tuple[str, ...]) -> dict[str, object]:
    return dict(zip(names, operation.args, strict=False)) | operation.kwargs


def _through_centring(
    operation: Operation,
    relevance: Tensor,
    axes: tuple[int, ...] | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    groups: int | None = None,
) -> Tensor:
    (x,) = operation.inputs
    with torch.enable_grad():
        parts = x if groups is None else x.unflatten(1, (groups, -1))
        axes = tuple(range(2, parts.dim())) if axes is None else axes
        std = (parts.var(axes, unbiased=False, keepdim=True) + (1e-5 if eps is None else eps)).sqrt().detach()
        z = ((parts - parts.mean(axes, keepdim=True)) / std).view_as(x)
        z = z if weight is None else z * weight
        z = z if bias is None else z + bias
    return (x * torch.autograd.grad(z, x, epsilon_quotient(relevance, z.detach()))[0]).detach()


def epsilon_log_softmax(operation: Operation, relevance: Tensor) -> Sequence[Tensor]:
    """x - log sum exp x by the epsilon rule, what is taken from all scores alike taken as given: R_x = x R / y."""
    (x,) = operation.inputs
    return [x.detach() * epsilon_quotient(relevance, operation.output.detach())]
