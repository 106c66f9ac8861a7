"""Random problems for the operator and two definitions of it that share nothing with the package."""

from collections.abc import Callable
from math import floor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

Problem = tuple[Tensor, Tensor, Tensor, Tensor]


def make_problem(
    levels: list[tuple[int, int]],
    B: int = 2,
    Q: int = 5,
    H: int = 2,
    C: int = 3,
    P: int = 2,
    spread: tuple[float, float] = (-0.4, 1.4),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """value, shapes, sampling_locations (uniform in spread), attention_weights."""
    generator = torch.Generator().manual_seed(seed)
    low, high = spread
    value = torch.randn(B, sum(h * w for h, w in levels), H, C, generator=generator, dtype=torch.float64)
    locations = torch.rand(B, Q, H, len(levels), P, 2, generator=generator, dtype=torch.float64) * (high - low) + low
    weights = torch.randn(B, Q, H, len(levels) * P, generator=generator, dtype=torch.float64).softmax(-1)
    weights = weights.view(B, Q, H, len(levels), P)
    shapes = torch.tensor(levels, dtype=torch.int64).view(-1, 2)
    return value.to(dtype), shapes, locations.to(dtype), weights.to(dtype)


def loop_attention(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The definition, one sample and one neighbour after the other."""
    B, _, H, C = value.shape
    _, Q, _, L, P, _ = locations.shape
    output = torch.zeros(B, Q, H, C, dtype=value.dtype)
    levels = shapes.tolist()
    for b, q, head, level, p in torch.cartesian_prod(*map(torch.arange, (B, Q, H, L, P))).tolist():
        h, w = levels[level]
        start = sum(rows * columns for rows, columns in levels[:level])
        x, y = locations[b, q, head, level, p].tolist()
        x, y = x * w - 0.5, y * h - 0.5
        for row in (floor(y), floor(y) + 1):
            for column in (floor(x), floor(x) + 1):
                if 0 <= row < h and 0 <= column < w:
                    coefficient = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[b, q, head, level, p]
                    output[b, q, head] += coefficient * value[b, start + row * w + column, head]
    return output.flatten(2)


def grid_sample_attention(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The same by torch's grid_sample and torch's own gradients."""
    B, _, H, C = value.shape
    output = torch.zeros((), dtype=value.dtype)
    start = 0
    for level, (h, w) in enumerate(shapes.tolist()):
        maps = value[:, start : start + h * w].permute(0, 2, 3, 1).reshape(B * H, C, h, w)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        output = output + (F.grid_sample(maps, grid, align_corners=False) * weight).sum(-1)
        start += h * w
    return output.view(B, H * C, -1).transpose(1, 2)


@pytest.fixture
def problem() -> Callable[..., Problem]:
    return make_problem


@pytest.fixture
def by_loop() -> Callable[..., Tensor]:
    return loop_attention


@pytest.fixture
def by_grid_sample() -> Callable[..., Tensor]:
    return grid_sample_attention
