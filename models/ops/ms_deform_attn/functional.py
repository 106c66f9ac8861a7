"""The functions that people call: multi-scale deformable attention, plain and fused with the arithmetic in front."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from ms_deform_attn import operators

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def ms_deform_attn(value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """Multi-scale deformable attention: the weighted sum of bilinear samples of every head's feature maps.

    output[b, q, h] = sum_{l, p} attention_weights[b, q, h, l, p] * bilinear(value_l[b, h], sampling_locations[...])

    Row i, column j of level l has its centre at y = (i + 0.5) / h_l, x = (j + 0.5) / w_l; outside the map is zero.
    The gradient of a location is that of the cell found by floor, so it is one-sided at cell centres.
    Everything is accumulated in the widest type given, at least float32, and the output has the type of `value`: under
    autocast a half-precision value meets float32 locations and weights, and the sum is rounded once.

    value: (B, S, H, C), levels one after the other, each row by row. shapes: (L, 2) int64 on the CPU, (h, w) per level.
    sampling_locations: (B, Q, H, L, P, 2), (x, y) in [0, 1] over the map. attention_weights: (B, Q, H, L, P).
    Returns (B, Q, H * C). Raises ValueError where shapes, types or devices do not fit, and RuntimeError on a second or
    forward-mode derivative.
    Source: Zhu et al., Deformable DETR, ICLR 2021, equation 3.
    """
    arguments = (value, shapes, sampling_locations, attention_weights)
    if has_torch_function(arguments):
        return handle_torch_function(ms_deform_attn, arguments, *arguments)
    _check_dimensions(value, shapes, sampling_locations, attention_weights)
    return operators.forward(value, shapes, sampling_locations, attention_weights)


def ms_deform_attn_fused(
    value: Tensor, shapes: Tensor, reference_points: Tensor, sampling_offsets: Tensor, attention_logits: Tensor
) -> Tensor:
    """Multi-scale deformable attention from what a network's layers give: the arithmetic in front happens inside.

    The same as `ms_deform_attn(value, shapes, sampling_locations(reference_points, sampling_offsets, shapes),
    attention_weights(attention_logits))`, without storing locations and weights: faster and smaller, above all in
    training. A TorchFunctionMode that needs them calls those two functions itself.

    value: (B, S, H, C). shapes: (L, 2) int64 on the CPU, (h, w) per level. reference_points: (B, Q, L, 2) points or
    (B, Q, L, 4) boxes cxcywh in [0, 1]. sampling_offsets: (B, Q, H, L, P, 2), in cells for points, in half boxes over P
    for boxes. attention_logits: (B, Q, H, L, P), the weights before the softmax over L * P.
    Returns (B, Q, H * C). Raises as `ms_deform_attn` does.
    """
    arguments = (value, shapes, reference_points, sampling_offsets, attention_logits)
    if has_torch_function(arguments):
        return handle_torch_function(ms_deform_attn_fused, arguments, *arguments)
    _check_dimensions(value, shapes, sampling_offsets, attention_logits, ("sampling_offsets", "attention_logits"))
    B, Q, _, L, _ = attention_logits.shape
    if reference_points.shape not in ((B, Q, L, 2), (B, Q, L, 4)) or reference_points.device != value.device:
        raise ValueError(
            f"reference_points has shape {tuple(reference_points.shape)} on {reference_points.device}, "
            f"expected ({B}, {Q}, {L}, 2) points or ({B}, {Q}, {L}, 4) boxes on {value.device}"
        )
    return operators.fused_forward(value, shapes, reference_points, sampling_offsets, attention_logits)


def _check_dimensions(
    value: Tensor,
    shapes: Tensor,
    locations: Tensor,
    weights: Tensor,
    names: tuple[str, str] = ("sampling_locations", "attention_weights"),
) -> None:
    if forward_ad._current_level >= 0:
        raise RuntimeError(
            "ms_deform_attn has no forward-mode derivative: differentiate backwards, as autograd.grad does"
        )
    if value.dtype not in DTYPES:
        raise ValueError(f"value has dtype {value.dtype}, expected one of {', '.join(map(str, DTYPES))}")
    for name, tensor in zip(names, (locations, weights), strict=True):
        if tensor.device != value.device or tensor.dtype not in DTYPES:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, expected one of value's types on {value.device}"
            )
    if value.dim() != 4:
        raise ValueError(f"value has shape {tuple(value.shape)}, expected four dimensions (B, S, H, C)")
    if shapes.dim() != 2 or shapes.shape[1] != 2:
        raise ValueError(f"shapes has shape {tuple(shapes.shape)}, expected (L, 2) with one (h, w) per level")
    if shapes.dtype != torch.int64:
        raise ValueError(f"shapes has dtype {shapes.dtype}, expected torch.int64")
    if locations.dim() != 6 or locations.shape[5] != 2:
        raise ValueError(f"{names[0]} has shape {tuple(locations.shape)}, expected six dimensions (B, Q, H, L, P, 2)")
    B, _, H, _ = value.shape
    if locations.shape[0] != B or locations.shape[2] != H or locations.shape[3] != shapes.shape[0]:
        raise ValueError(
            f"{names[0]} has shape {tuple(locations.shape)}, expected (B, Q, H, L, P, 2) with B={B}, H={H} "
            f"of value and L={shapes.shape[0]} of shapes"
        )
    if weights.shape != locations.shape[:5]:
        raise ValueError(
            f"{names[1]} has shape {tuple(weights.shape)}, expected {tuple(locations.shape[:5])} "
            f"as {names[0]} without its last dimension"
        )
