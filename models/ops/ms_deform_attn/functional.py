"""The operator `ms_deform_attn::forward`, its backward operator, and the function that people call.

A compiled kernel takes over by registering itself for a device behind the same two operators
(`TORCH_LIBRARY_IMPL(ms_deform_attn, CPU, m)` or `torch.library.register_kernel`); nothing else here changes.
"""

from functools import reduce
from types import ModuleType

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ms_deform_attn import grid_sample, weighted_rows

Levels = tuple[tuple[int, int], ...]


def ms_deform_attn(value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """Multi-scale deformable attention: the weighted sum of bilinear samples of every head's feature maps.

    output[b, q, h] = sum_{l, p} attention_weights[b, q, h, l, p] * bilinear(value_l[b, h], sampling_locations[...])

    Row i, column j of level l has its centre at y = (i + 0.5) / h_l, x = (j + 0.5) / w_l; outside the map is zero.
    The gradient of a location is that of the cell found by floor, so it is one-sided at cell centres.
    Everything is accumulated in the widest type given, at least float32, and the output has the type of `value`: under
    autocast a half-precision value meets float32 locations and weights, and the sum is rounded once.

    value: (B, S, H, C), levels one after the other, each row by row. shapes: (L, 2) int64 on the CPU, (h, w) per level.
    sampling_locations: (B, Q, H, L, P, 2), (x, y) in [0, 1] over the map. attention_weights: (B, Q, H, L, P).
    Returns (B, Q, H * C). Raises ValueError where the shapes do not fit and RuntimeError on a second derivative.
    Source: Zhu et al., Deformable DETR, ICLR 2021, equation 3.
    """
    arguments = (value, shapes, sampling_locations, attention_weights)
    if has_torch_function(arguments):
        return handle_torch_function(ms_deform_attn, arguments, *arguments)
    _check_dimensions(value, shapes, sampling_locations, attention_weights)
    return _forward(value, shapes, sampling_locations, attention_weights)


def _check_dimensions(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> None:
    if value.dim() != 4:
        raise ValueError(f"value has shape {tuple(value.shape)}, expected four dimensions (B, S, H, C)")
    if shapes.dim() != 2 or shapes.shape[1] != 2:
        raise ValueError(f"shapes has shape {tuple(shapes.shape)}, expected (L, 2) with one (h, w) per level")
    if shapes.dtype != torch.int64:
        raise ValueError(f"shapes has dtype {shapes.dtype}, expected torch.int64")
    if locations.dim() != 6 or locations.shape[5] != 2:
        raise ValueError(
            f"sampling_locations has shape {tuple(locations.shape)}, expected six dimensions (B, Q, H, L, P, 2)"
        )
    B, _, H, _ = value.shape
    if locations.shape[0] != B or locations.shape[2] != H or locations.shape[3] != shapes.shape[0]:
        raise ValueError(
            f"sampling_locations has shape {tuple(locations.shape)}, expected (B, Q, H, L, P, 2) with B={B}, H={H} "
            f"of value and L={shapes.shape[0]} of shapes"
        )
    if weights.shape != locations.shape[:5]:
        raise ValueError(
            f"attention_weights has shape {tuple(weights.shape)}, expected {tuple(locations.shape[:5])} "
            f"as sampling_locations without its last dimension"
        )


def _levels(value: Tensor, shapes: Tensor) -> Levels:
    """The levels as numbers, checked here because a compiled graph knows the numbers only when it runs."""
    levels = tuple((h, w) for h, w in shapes.tolist())
    if any(h < 1 or w < 1 for h, w in levels):
        raise ValueError(f"shapes is {levels}, expected at least one row and one column in each level")
    cells = sum(h * w for h, w in levels)
    if cells != value.shape[1]:
        raise ValueError(f"shapes {levels} have {cells} cells, expected the {value.shape[1]} tokens of value")
    return levels


def _formulation(value: Tensor) -> ModuleType:
    """Weighted rows on the CPU, where they beat grid_sample at every size measured; grid_sample elsewhere."""
    return weighted_rows if value.device.type == "cpu" else grid_sample


def _widened(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the widest of their types, at least float32, in which everything is accumulated."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return [t.detach().to(dtype) for t in tensors]


@torch.library.custom_op("ms_deform_attn::forward", mutates_args=())
def _forward(value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    levels = _levels(value, shapes)
    B, _, H, C = value.shape
    Q = sampling_locations.shape[1]
    if value.numel() == 0 or attention_weights.numel() == 0:
        return value.new_zeros(B, Q, H * C)
    wide, locations, weights = _widened(value, sampling_locations, attention_weights)
    return _formulation(value).forward(wide, levels, locations, weights).to(value.dtype)


@_forward.register_fake
def _(value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    B, _, H, C = value.shape
    return value.new_empty(B, sampling_locations.shape[1], H * C)


@torch.library.custom_op("ms_deform_attn::backward", mutates_args=())
def _backward(
    grad_output: Tensor, value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = value, sampling_locations, attention_weights
    levels = _levels(value, shapes)
    if value.numel() == 0 or attention_weights.numel() == 0:
        grads = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in inputs]
    else:
        cotangent, wide, locations, weights = _widened(grad_output, *inputs)
        grads = _formulation(value).backward(cotangent, wide, levels, locations, weights)
    grad_value, grad_locations, grad_weights = (g.to(t.dtype) for g, t in zip(grads, inputs, strict=True))
    return grad_value, grad_locations, grad_weights


@_backward.register_fake
def _(
    grad_output: Tensor, value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        sampling_locations.new_empty(sampling_locations.shape),
        attention_weights.new_empty(attention_weights.shape),
    )


def _save_inputs(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, shapes, sampling_locations, attention_weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = _backward(
        grad_output, value, shapes, sampling_locations, attention_weights
    )
    return grad_value, None, grad_locations, grad_weights


def _refuse_second_derivative(ctx, *grads: Tensor) -> None:
    raise RuntimeError(
        "ms_deform_attn has no second derivative: call autograd without create_graph, "
        "or differentiate torch.nn.functional.grid_sample twice instead"
    )


_forward.register_autograd(_differentiate, setup_context=_save_inputs)
_backward.register_autograd(_refuse_second_derivative)
