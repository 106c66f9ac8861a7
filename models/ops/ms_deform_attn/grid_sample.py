"""The operator as one `grid_sample` a level: the formulation for devices where a gather is cheap (CUDA)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def _level_maps(value: Tensor, levels: tuple[tuple[int, int], ...]) -> list[Tensor]:
    """The maps of every level and head, each (B * H, C, h, w)."""
    B, _, H, C = value.shape
    split = value.split([h * w for h, w in levels], dim=1)
    return [v.permute(0, 2, 3, 1).reshape(B * H, C, h, w) for v, (h, w) in zip(split, levels, strict=True)]


def _head_major(tensor: Tensor) -> Tensor:
    """(B, Q, H, ...) -> (B * H, Q, ...)."""
    return tensor.transpose(1, 2).flatten(0, 1)


def _grids(locations: Tensor) -> Tensor:
    """Grids (B * H, Q, L, P, 2) of locations; all that lies further out than a map's size is outside, infinity too."""
    return _head_major(locations.clamp(-2, 3) * 2 - 1)


def _sample(maps: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def forward(value: Tensor, levels: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor) -> Tensor:
    """Output (B, Q, H * C) of value (B, S, H, C), locations (B, Q, H, L, P, 2), weights (B, Q, H, L, P)."""
    B, Q, H = locations.shape[:3]
    C = value.shape[3]
    grids = _grids(locations)
    # Zero, or NaN where the location is: some devices' grid_sample takes NaN for a place outside, in silence.
    weights = _head_major(weights)[:, None] + 0 * grids.sum(-1)[:, None]  # (B * H, 1, Q, L, P)
    output = value.new_zeros(B * H, C, Q)
    for level, maps in enumerate(_level_maps(value, levels)):
        output += (_sample(maps, grids[:, :, level]) * weights[..., level, :]).sum(-1)
    return output.view(B, H * C, Q).transpose(1, 2).contiguous()


def backward(
    grad_output: Tensor, value: Tensor, levels: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights for the cotangent grad_output (B, Q, H * C)."""
    B, Q, H = locations.shape[:3]
    C = value.shape[3]
    grad_value = value.new_empty(value.shape)
    grad_locations = locations.new_empty(locations.shape)
    grad_weights = weights.new_empty(weights.shape)
    grids = _grids(locations)
    weights = _head_major(weights)[:, None]
    cotangent = _head_major(grad_output.reshape(B, Q, H, C)).transpose(1, 2)[..., None]  # (B * H, C, Q, 1)
    start = 0
    for level, (maps, (h, w)) in enumerate(zip(_level_maps(value, levels), levels, strict=True)):
        grid = grids[:, :, level]
        grad_weight = (_sample(maps, grid) * cotangent).sum(1)  # (B * H, Q, P)
        grad_maps, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            cotangent * weights[..., level, :], maps, grid, 0, 0, False, (True, True)
        )
        grad_value[:, start : start + h * w] = grad_maps.view(B, H, C, h * w).permute(0, 3, 1, 2)
        grad_locations[:, :, :, level] = 2 * grad_grid.view(B, H, *grad_grid.shape[1:]).transpose(1, 2)
        grad_weights[:, :, :, level] = grad_weight.view(B, H, *grad_weight.shape[1:]).transpose(1, 2)
        start += h * w
    return grad_value, grad_locations, grad_weights
