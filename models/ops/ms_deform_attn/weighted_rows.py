"""The operator as weighted sums of rows of `value`: the formulation for CPUs.

Every point reads four rows of value viewed as (B * S * H, C). Forward is an `embedding_bag` per corner; the gradient of
value is the same sum transposed (points sorted by the cell they read); the gradient of a coefficient is the dot product
of a row read and the bag's cotangent, `sampled_addmm`. Index arithmetic goes in chunks of points that fit the cache.
"""

import warnings
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ms_deform_attn import grid_sample

CHUNK = 1 << 15  # points a thread, two threads at least: smaller pays for calls, larger leaves the cache (measured)

Levels = tuple[tuple[int, int], ...]


class Layout(NamedTuple):
    """Constants of one query's points, N = H * L * P of them in the order (H, L, P)."""

    sizes: Tensor  # (2, 1, N): w and h of the level
    last: Tensor  # (2, 1, N): the last cell that has a next one
    several: Tensor | None  # (2, 1, N): 0 where the level is one cell wide (high), else 1; None if it is 1 everywhere
    pitch: Tensor  # (N,) int32: rows of value from a cell to the one below it
    right: Tensor  # (N,) int32: rows of value to the next cell in x, 0 if there is none
    below: Tensor  # (N,) int32: the same in y
    origin: Tensor  # (N,) int32: row of the level's first cell


@lru_cache(maxsize=64)
def _layout(levels: Levels, H: int, P: int, dtype: torch.dtype) -> Layout:
    heights, widths = torch.tensor(levels, device="cpu").unbind(1)
    tokens = heights * widths

    def per_point(per_level: Tensor) -> Tensor:
        return per_level.repeat_interleave(P).repeat(H)

    sizes = torch.stack([per_point(widths), per_point(heights)])[:, None]
    head = torch.arange(H, device="cpu").repeat_interleave(len(levels) * P)
    return Layout(
        sizes=sizes.to(dtype),
        last=(sizes - 2).clamp_(min=0).to(dtype),
        several=(sizes > 1).to(dtype) if (sizes == 1).any() else None,
        pitch=per_point(widths * H).int(),
        right=per_point((widths > 1) * H).int(),
        below=per_point((heights > 1) * widths * H).int(),
        origin=(per_point((tokens.cumsum(0) - tokens) * H) + head).int(),
    )


class Corners(NamedTuple):
    """The four cells around each point of a chunk; each tensor (images * queries, N), behind (x, y) where it says 2."""

    rows: tuple[Tensor, Tensor, Tensor, Tensor]  # int32 rows of value: upper left, upper right, lower left, lower right
    distance: Tensor  # (2, ...): cells from the left (upper) cell to the point
    near: Tensor  # (2, ...): coefficient of the left (upper) cells
    far: Tensor  # (2, ...): coefficient of the right (lower) cells

    def coefficients(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bilinear coefficient times weight of each corner, in the order of rows."""
        upper, lower = weights * self.near[1], weights * self.far[1]
        return upper * self.near[0], upper * self.far[0], lower * self.near[0], lower * self.far[0]


def _corners(locations: Tensor, layout: Layout, H: int, images: int, rows_per_image: int) -> Corners:
    """Cells and coefficients of locations (images * queries, N, 2).

    The left cell is clamped to [0, w - 2] and both coefficients are hats max(0, 1 - |position - cell|), which vanish at
    cells that the point does not touch: there is no mask, and no row outside the map is read whatever the location.
    """
    position = locations.movedim(-1, 0).clone(memory_format=torch.contiguous_format).mul_(layout.sizes).sub_(0.5)
    # Clamped at 0 only as integers, because NaN passes a clamp and then becomes some integer.
    cell = torch.minimum(position, layout.last).int().clamp_(min=0)
    distance = position.sub_(cell)
    near = distance.abs().neg_().add_(1).clamp_(min=0)
    far = (distance - 1).abs_().neg_().add_(1).clamp_(min=0)
    if layout.several is not None:
        far.mul_(layout.several)
    x, y = cell
    upper_left = y.mul_(layout.pitch).add_(x, alpha=H).add_(layout.origin)
    if images > 1:
        first = torch.arange(0, images * rows_per_image, rows_per_image, dtype=torch.int32, device="cpu")
        upper_left.view(images, -1).add_(first[:, None])
    upper_right = upper_left + layout.right
    rows = upper_left, upper_right, upper_left + layout.below, upper_right + layout.below
    return Corners(rows, distance, near, far)


def _chunks(B: int, Q: int, points: int, rows_per_image: int) -> Iterator[tuple[slice, list[slice]]]:
    """Groups of images and, of each group, parts of its queries: about CHUNK points a thread in each part."""
    chunk = CHUNK * max(2, torch.get_num_threads())
    images = max(1, min(chunk // (Q * points), (2**31 - 1) // rows_per_image))
    queries = max(1, chunk // (images * points))
    for b in range(0, B, images):
        yield slice(b, min(b + images, B)), [slice(q, min(q + queries, Q)) for q in range(0, Q, queries)]


def forward(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
    """Output (B, Q, H * C) of value (B, S, H, C), locations (B, Q, H, L, P, 2), weights (B, Q, H, L, P)."""
    if not value.sum().isfinite():  # rows with coefficient zero are read too, and zero times infinity is not zero
        return grid_sample.forward(value, levels, locations, weights)
    B, S, H, C = value.shape
    _, Q, _, L, P = weights.shape
    value = value.contiguous()
    output = value.new_empty(B, Q, H, C)
    layout = _layout(levels, H, P, value.dtype)
    for images, parts in _chunks(B, Q, H * L * P, S * H):
        table = value[images].view(-1, C)
        for queries in parts:
            target = output[images, queries]
            corners = _corners(locations[images, queries].reshape(-1, H * L * P, 2), layout, H, target.shape[0], S * H)
            coefficients = corners.coefficients(weights[images, queries].reshape(-1, H * L * P))
            sums = [
                F.embedding_bag(rows.view(-1, L * P), table, mode="sum", per_sample_weights=coefficient.view(-1, L * P))
                for rows, coefficient in zip(corners.rows, coefficients, strict=True)
            ]
            torch.add(sums[0].add_(sums[1]).view(target.shape), sums[2].add_(sums[3]).view(target.shape), out=target)
    return output.view(B, Q, H * C)


def backward(
    grad_output: Tensor, value: Tensor, levels: Levels, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights for the cotangent grad_output (B, Q, H * C)."""
    if not all(tensor.sum().isfinite() for tensor in (value, grad_output, locations, weights)):
        return grid_sample.backward(grad_output, value, levels, locations, weights)
    B, S, H, C = value.shape
    _, Q, _, L, P = weights.shape
    N = H * L * P
    value = value.contiguous()
    cotangent = grad_output.reshape(B, Q, H, C).contiguous()
    grad_value = torch.empty_like(value)
    grad_locations = locations.new_empty(locations.shape)
    grad_weights = weights.new_empty(weights.shape)
    layout = _layout(levels, H, P, value.dtype)
    for images, parts in _chunks(B, Q, N, S * H):
        table = value[images].view(-1, C)
        read: list[tuple[Tensor, Tensor]] = []
        for queries in parts:
            shape = grad_weights[images, queries].shape
            weight = weights[images, queries].reshape(-1, N)
            corners = _corners(locations[images, queries].reshape(-1, N, 2), layout, H, shape[0], S * H)
            dots = _row_products(corners.rows, cotangent[images, queries].reshape(-1, C), table)
            grad_weight, grad_location = _point_gradients(dots, corners, weight, layout)
            grad_weights[images, queries] = grad_weight.view(shape)
            grad_locations[images, queries] = grad_location.view(*shape, 2)
            read.append((torch.stack(corners.rows), torch.stack(corners.coefficients(weight))))
        rows, coefficients = (part[0] if len(read) == 1 else torch.cat(part, 1) for part in zip(*read, strict=True))
        _value_gradient(grad_value[images], rows, coefficients, cotangent[images].reshape(-1, C), levels)
    return grad_value, grad_locations, grad_weights


def _row_products(rows: tuple[Tensor, ...], cotangent: Tensor, table: Tensor) -> list[Tensor]:
    """The product of each row read (n, N) with the cotangent of its bag: cotangent (n * H, C), table (rows, C)."""
    _expect_beta_warning()
    points = rows[0].numel() // cotangent.shape[0]
    # A sparse matrix may not have more entries than places, which sampled_addmm relies on when it writes them.
    if points > table.shape[0]:
        table = F.pad(table, (0, 0, 0, points - table.shape[0]))
    first = torch.arange(0, rows[0].numel() + 1, points, dtype=torch.int32, device="cpu")
    products = []
    for row in rows:
        pattern = torch.sparse_csr_tensor(
            first,
            row.view(-1),
            torch.zeros(row.numel(), dtype=table.dtype, device="cpu"),
            size=(cotangent.shape[0], table.shape[0]),
            check_invariants=False,
        )
        torch.sparse.sampled_addmm(pattern, cotangent, table.t(), beta=0.0, out=pattern)
        products.append(pattern.values().view(row.shape))
    return products


@cache
def _expect_beta_warning() -> None:
    """Take the once-a-process notice that sparse tensors are in beta: nobody sees one of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], torch.zeros(0, dtype=torch.int64), torch.zeros(0), size=(1, 1))


def _is(cells: Tensor, which: int) -> Tensor:
    """1 where the whole number is `which`, else 0 (a hat is cheaper than a comparison turned into numbers)."""
    return (cells - which).abs_().neg_().add_(1).clamp_(min=0)


def _point_gradients(dots: list[Tensor], corners: Corners, weights: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Gradients of weights (n, N) and locations (n, N, 2).

    The slope of a hat is taken in the cell [floor, floor + 1) that holds the point, as grid_sample does.
    """
    offset = corners.distance.floor()  # 0: between the two cells, -1: left of them, 1: right of them
    between = _is(offset, 0)
    near_slope, far_slope = _is(offset, -1).sub_(between), between.sub_(_is(offset, 1))
    if layout.several is not None:
        far_slope.mul_(layout.several)
    upper_left, upper_right, lower_left, lower_right = dots
    (near_x, near_y), (far_x, far_y) = corners.near, corners.far
    upper = (near_x * upper_left).addcmul_(far_x, upper_right)
    lower = (near_x * lower_left).addcmul_(far_x, lower_right)
    grad_weights = (near_y * upper).addcmul_(far_y, lower)
    slope_y = upper.mul_(near_slope[1]).addcmul_(far_slope[1], lower)
    slope_x = upper_left.mul_(near_slope[0]).addcmul_(far_slope[0], upper_right).mul_(near_y)
    slope_x.addcmul_(lower_left.mul_(near_slope[0]).addcmul_(far_slope[0], lower_right), far_y)
    slopes = torch.stack([slope_x.mul_(weights).mul_(layout.sizes[0]), slope_y.mul_(weights).mul_(layout.sizes[1])], -1)
    return grad_weights, slopes


def _value_gradient(grad_value: Tensor, rows: Tensor, coefficients: Tensor, cotangent: Tensor, levels: Levels) -> None:
    """Fill grad_value (images, S, H, C): each row's sum of coefficient times cotangent over the points that read it.

    rows and coefficients are (4, n, N), cotangent is (n * H, C). Many points are sorted once, by their upper left row:
    the other three lie at a fixed distance from it in each level. Few points are cheaper sorted once a corner than
    summed into four tables.
    """
    images, S, H, _ = grad_value.shape
    if rows[0].numel() < images * S * H:
        grad_value.copy_(_transposed_sums(rows, [coefficients], cotangent, images * S * H)[0].view(grad_value.shape))
        return
    sums = _transposed_sums(rows[0], list(coefficients), cotangent, images * S * H)
    grad_value.copy_(sums[0].view(grad_value.shape))
    for corner in (1, 2, 3):
        start = 0
        for h, w in levels:
            step = (corner % 2 if w > 1 else 0) + (corner // 2 * w if h > 1 else 0)
            shifted = sums[corner].view(grad_value.shape)[:, start : start + h * w - step]
            grad_value[:, start + step : start + h * w] += shifted
            start += h * w


def _transposed_sums(rows: Tensor, coefficients: list[Tensor], cotangent: Tensor, table: int) -> list[Tensor]:
    """For every set of coefficients, each of `table` rows' sum of coefficient times cotangent over its readers."""
    bags = torch.arange(cotangent.shape[0], dtype=torch.int32, device="cpu")[:, None]
    per_bag = rows.shape[-1] * rows.shape[-2] // cotangent.shape[0]
    bags = bags.expand(rows.numel() // (per_bag * cotangent.shape[0]), -1, per_bag).reshape(-1)
    order = rows.view(-1).sort().indices
    bags = bags.index_select(0, order)
    ends = torch.bincount(rows.view(-1), minlength=table).cumsum_(0)
    offsets = F.pad(ends, (1, 0)).int()
    return [
        F.embedding_bag(
            bags,
            cotangent,
            offsets,
            mode="sum",
            per_sample_weights=coefficient.view(-1).index_select(0, order),
            include_last_offset=True,
        )
        for coefficient in coefficients
    ]
