"""The path "triton": the operator on CUDA devices by Triton kernels, which need no CUDA toolkit.

Value is read in vectors of 16 bytes along the channels; every other tensor comes from or goes to memory once; in the
fused functions softmax and the arithmetic of locations happen in registers. float64 is computed as well.

How the work is laid out (by counting instructions and memory sectors, not by trials on a device):
- a program is one warp, and several rows (queries of one head) share it. What concerns a point alone is repeated by
  each lane of its row, so few lanes a row mean fewer instructions: with many queries (the encoder) two lanes read 32
  bytes, a whole sector, and go over the channels in pieces; with few (the decoder) the channels spread over as many
  lanes as they fill, or there would be too few warps for the device;
- backward gives a lane four channels, as many as one vector addition to memory takes, and 16 of them side by side.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ms_deform_attn.triton_backward import backward_kernel
from ms_deform_attn.triton_forward import forward_kernel

Levels = tuple[tuple[int, int], ...]

# Warps that hide a device's latency, on each of its multiprocessors: half of what registers leave room for.
ENOUGH_WARPS = 16
MAX_PIECES = 4


class Layout(NamedTuple):
    """How one program covers rows and channels."""

    rows: int  # queries of one head
    width: int  # channels read at once
    chunks: int  # pieces of that width
    warps: int

    @classmethod
    def of(cls, C: int, lane: int, width: int) -> "Layout":
        """At least `width` channels at once (all of them if fewer), `lane` of them a lane, in at most MAX_PIECES."""
        width = min(triton.next_power_of_2(C), max(width, triton.next_power_of_2(triton.cdiv(C, MAX_PIECES))))
        lanes = max(1, width // lane)
        return cls(max(1, 32 // lanes), width, triton.cdiv(C, width), max(1, min(4, lanes // 32)))


def forward_layout(rows: int, C: int, itemsize: int, multiprocessors: int) -> Layout:
    """The layout for this many rows (B * Q * H): two lanes a row if that fills the device, else as many as C fills."""
    lane = 16 // itemsize
    narrow = Layout.of(C, lane, 2 * lane)
    if rows // narrow.rows * narrow.warps >= ENOUGH_WARPS * multiprocessors:
        return narrow
    return Layout.of(C, lane, 32 * lane)


def backward_layout(C: int, lane: int) -> Layout:
    return Layout.of(C, lane, 16)


@lru_cache(maxsize=256)
def packed_levels(levels: Levels) -> tuple[int, ...]:
    """One odd 64-bit number a level: for numbers that are 1, multiples of 16 or short, Triton would compile again."""
    return tuple(h << 33 | w << 1 | 1 for h, w in levels)


def forward(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
    """Output (B, Q, H * C) of value (B, S, H, C), locations (B, Q, H, L, P, 2), weights (B, Q, H, L, P)."""
    return _forward(value, levels, None, locations, weights)


def fused_forward(value: Tensor, levels: Levels, reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    """Output (B, Q, H * C) of references (B, Q, L, 2 | 4), offsets (B, Q, H, L, P, 2), logits (B, Q, H, L, P)."""
    return _forward(value, levels, reference_points, offsets, logits)


def backward(
    grad_output: Tensor, value: Tensor, levels: Levels, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights for the cotangent grad_output (B, Q, H * C)."""
    grad_value, _, grad_locations, grad_weights = _backward(grad_output, value, levels, None, locations, weights, False)
    return grad_value, grad_locations, grad_weights


def fused_backward(
    grad_output: Tensor,
    value: Tensor,
    levels: Levels,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    needs_reference: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of value, reference_points (None unless needed), offsets and logits for the cotangent grad_output."""
    return _backward(grad_output, value, levels, reference_points, offsets, logits, needs_reference)


def _multiprocessors(device: torch.device) -> int:
    """How many multiprocessors the device has; one where Triton interprets the kernels on the CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _in_pairs(tensor: Tensor) -> Tensor:
    """The tensor in its natural order, where each pair (x, y) can be read as one integer."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % (2 * tensor.element_size()) == 0 else tensor.clone()


def _accumulator(*tensors: Tensor) -> tuple[torch.dtype, tl.dtype]:
    """The widest type given, at least float32, as torch and as Triton call it."""
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return torch.float64, tl.float64
    return torch.float32, tl.float32


def _constants(value: Tensor, points: Tensor, reference: Tensor | None, layout: Layout, accumulator: tl.dtype) -> dict:
    """What both kernels are compiled for."""
    _, S, H, C = value.shape
    _, _, _, L, P, _ = points.shape
    return {
        "H": H,
        "C": C,
        "L": L,
        "P": P,
        "R": 0 if reference is None else reference.shape[-1],
        "ROWS": layout.rows,
        "WIDTH": layout.width,
        "CHUNKS": layout.chunks,
        # The farthest address computed is one row of cells beyond the last, never more than all of them.
        "OFFSET": tl.int32 if 2 * S * H * C < 2**31 else tl.int64,
        "ACC": accumulator,
        "num_warps": layout.warps,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def _forward(value: Tensor, levels: Levels, reference: Tensor | None, points: Tensor, weights: Tensor) -> Tensor:
    B, S, H, C = value.shape
    Q = points.shape[1]
    value, points, weights = value.contiguous(), _in_pairs(points), weights.contiguous()
    if reference is not None:
        reference = _in_pairs(reference)
    _, accumulator = _accumulator(value, points, weights, *([] if reference is None else [reference]))
    layout = forward_layout(B * Q * H, C, value.element_size(), _multiprocessors(value.device))
    output = value.new_empty(B, Q, H * C)
    with torch.cuda.device_of(value):
        forward_kernel[(B * H * triton.cdiv(Q, layout.rows),)](
            output,
            value,
            points if reference is None else reference,
            points,
            weights,
            packed_levels(levels),
            S,
            Q,
            **_constants(value, points, reference, layout, accumulator),
        )
    return output


def _backward(
    grad_output: Tensor,
    value: Tensor,
    levels: Levels,
    reference: Tensor | None,
    points: Tensor,
    weights: Tensor,
    needs_reference: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    B, S, H, C = value.shape
    _, Q, _, L, P, _ = points.shape
    grad_output, value, weights = grad_output.contiguous(), value.contiguous(), weights.contiguous()
    points = _in_pairs(points)
    if reference is not None:
        reference = _in_pairs(reference)
    dtype, accumulator = _accumulator(grad_output, value, points, weights, *([] if reference is None else [reference]))
    fixed = torch.are_deterministic_algorithms_enabled()
    # Vector additions take four float32; integers of 64 bits fill a lane's 16 bytes in pairs.
    lane = 2 if fixed or dtype == torch.float64 else 4
    layout = backward_layout(C, lane)
    sums = value.new_zeros(value.shape, dtype=torch.int64 if fixed else dtype)
    non_finite = value.new_zeros(value.shape, dtype=dtype) if fixed else sums
    unit = _fixed_point_unit(grad_output, weights if reference is None else None, Q * P, dtype) if fixed else sums
    grad_points, grad_weights = torch.empty_like(points), torch.empty_like(weights)
    grad_reference = value.new_empty(B, Q, H, L, reference.shape[-1], dtype=dtype) if needs_reference else sums
    with torch.cuda.device_of(value):
        backward_kernel[(B * H * triton.cdiv(Q, layout.rows),)](
            sums,
            non_finite,
            unit,
            grad_reference,
            grad_points,
            grad_weights,
            grad_output,
            value,
            points if reference is None else reference,
            points,
            weights,
            packed_levels(levels),
            S,
            Q,
            NEEDS_REFERENCE=needs_reference,
            FIXED=fixed,
            LANE=min(lane, layout.width),
            PADDED=triton.next_power_of_2(L * P),
            **_constants(value, points, reference, layout, accumulator),
        )
    if fixed:
        sums = sums.double().div_(unit).add_(non_finite)
    # Each head wrote its own share: summed here, in one order always.
    shares = grad_reference.sum(2).to(reference.dtype) if needs_reference else None
    return sums.to(value.dtype), shares, grad_points, grad_weights


def _fixed_point_unit(grad_output: Tensor, weights: Tensor | None, addends: int, dtype: torch.dtype) -> Tensor:
    """The power of two by which 64-bit integers count the gradient of value, so that `addends` of the largest fit.

    No addend exceeds the largest cotangent times the largest weight (1 after a softmax), since a bilinear coefficient
    is at most 1, and a cell receives at most one addend from each point of its level and head. With the 2^17 points of
    an encoder one unit is 2^-44 of that product: float32's precision for whatever is above a millionth of it.
    """
    largest = _largest_finite(grad_output)
    if weights is not None:
        largest = largest * _largest_finite(weights)
    exponent = 61 - addends.bit_length() - torch.frexp(largest).exponent
    bound = 126 if dtype == torch.float32 else 1022
    return torch.ldexp(torch.ones_like(largest), exponent.clamp(-bound, bound)).to(dtype)


def _largest_finite(tensor: Tensor) -> Tensor:
    return torch.where(tensor.isfinite(), tensor.abs(), 0).amax().double()
