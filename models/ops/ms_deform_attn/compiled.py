"""The path of the C++ kernels for CPUs (`csrc/`), thin calls into the library that `build` finds or compiles."""

import torch
from torch import Tensor

from ms_deform_attn import build

Levels = tuple[tuple[int, int], ...]

build.load()
_library = torch.ops.ms_deform_attn_cpu


def _flat(levels: Levels) -> list[int]:
    return [size for level in levels for size in level]


def forward(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
    """Output (B, Q, H * C) of value (B, S, H, C), locations (B, Q, H, L, P, 2), weights (B, Q, H, L, P)."""
    return _library.forward(value, _flat(levels), locations, weights)


def backward(
    grad_output: Tensor, value: Tensor, levels: Levels, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights for the cotangent grad_output (B, Q, H * C)."""
    return _library.backward(grad_output, value, _flat(levels), locations, weights)


def fused_forward(value: Tensor, levels: Levels, reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    """Output (B, Q, H * C) of references (B, Q, L, 2 | 4), offsets (B, Q, H, L, P, 2), logits (B, Q, H, L, P)."""
    return _library.fused_forward(value, _flat(levels), reference_points, offsets, logits)


def fused_backward(
    grad_output: Tensor,
    value: Tensor,
    levels: Levels,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    needs_reference: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of value, reference_points (None unless needed), offsets and logits."""
    grad_value, grad_reference, grad_offsets, grad_logits = _library.fused_backward(
        grad_output, value, _flat(levels), reference_points, offsets, logits, needs_reference
    )
    return grad_value, grad_reference if needs_reference else None, grad_offsets, grad_logits
