"""The operator `ms_deform_attn::forward`, its backward operator, and the function that people call.

A compiled kernel takes over by registering itself for a device behind the same two operators
(`TORCH_LIBRARY_IMPL(ms_deform_attn, CPU, m)` or `torch.library.register_kernel`); nothing else here changes.
"""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ms_deform_attn import grid_sample


def ms_deform_attn(value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """Multi-scale deformable attention: the weighted sum of bilinear samples of every head's feature maps.

    output[b, q, h] = sum_{l, p} attention_weights[b, q, h, l, p] * bilinear(value of level l, sampling_locations[b, q, h, l, p])

    Cell (i, j) of a level of h_l x w_l cells has its centre at x = (j + 0.5) / w_l, y = (i + 0.5) / h_l; outside is zero.
    The gradient of a location is that of the cell found by floor, so it is one-sided at cell centres.
    Half precision is accumulated in float32; the output has the dtype of `value`.

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


def _levels(value: Tensor, shapes: Tensor) -> list[tuple[int, int]]:
    levels = [(int(h), int(w)) for h, w in shapes.tolist()]
    if any(h < 1 or w < 1 for h, w in levels):
        raise ValueError(f"shapes is {levels}, expected at least one row and one column in each level")
    cells = sum(h * w for h, w in levels)
    if cells != value.shape[1]:
        raise ValueError(f"shapes {levels} have {cells} cells, expected the {value.shape[1]} tokens of value")
    return levels


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


@torch.library.custom_op("ms_deform_attn::forward", mutates_args=())
def _forward(value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    levels = _levels(value, shapes)
    dtype = _compute_dtype(value, sampling_locations, attention_weights)
    output = grid_sample.forward(value.to(dtype), levels, sampling_locations.to(dtype), attention_weights.to(dtype))
    return output.to(value.dtype)


@_forward.register_fake
def _(value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    B, _, H, C = value.shape
    return value.new_empty(B, sampling_locations.shape[1], H * C)


@torch.library.custom_op("ms_deform_attn::backward", mutates_args=())
def _backward(
    grad_output: Tensor, value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    levels = _levels(value, shapes)
    dtype = _compute_dtype(value, sampling_locations, attention_weights)
    grad_value, grad_locations, grad_weights = grid_sample.backward(
        grad_output.to(dtype), value.to(dtype), levels, sampling_locations.to(dtype), attention_weights.to(dtype)
    )
    return (
        grad_value.to(value.dtype),
        grad_locations.to(sampling_locations.dtype),
        grad_weights.to(attention_weights.dtype),
    )


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
