"""The Triton kernel of the backward pass: gradients of points and weights stored once, those of value added atomically.

A lane holds four channels, as many 32-bit numbers as one vector addition to memory takes from capability 9.0 on.
"""

import triton
import triton.language as tl

from ms_deform_attn.triton_forward import load_cells
from ms_deform_attn.triton_sampling import (
    level_affine,
    level_size,
    load_pair,
    neighbours,
    program_rows,
    softmax_terms,
    store_pair,
)


@triton.jit
def dot(cells, exists, cotangent, WIDTH: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr):
    """Inner product over all channels of the cells behind pointers with the cotangent's chunks."""
    product = load_cells(cells, exists, 0, WIDTH, C, ACC) * cotangent[0]
    for chunk in tl.static_range(1, len(cotangent)):
        product += load_cells(cells, exists, chunk, WIDTH, C, ACC) * cotangent[chunk]
    return tl.sum(product, 1, keep_dims=True)


@triton.jit
def scatter(target, cells, exists, coefficient, cotangent, FIXED: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr):
    """Add coefficient times cotangent to `cells` of the target (sums, non_finite, units per 1).

    FIXED: sums are integers that count units, so that their order does not matter, and what is no finite number goes
    into a table of its own, where any order ends in the same infinity or NaN.
    """
    sums, non_finite, unit = target
    # Weights of zero are frequent: a masked point, a point on a cell's centre. They are not worth an atomic addition.
    exists = exists & (coefficient != 0)
    for chunk in tl.static_range(len(cotangent)):
        added = coefficient * cotangent[chunk]
        mask = exists
        if (chunk + 1) * WIDTH > C:
            mask = exists & (chunk * WIDTH + tl.arange(0, WIDTH)[None, :] < C)
        if FIXED:
            is_finite = tl.abs(added) < float("inf")
            counted = tl.where(is_finite, added * unit, 0.0).to(tl.int64)
            tl.atomic_add(sums + cells + chunk * WIDTH, counted, mask=mask & is_finite, sem="relaxed")
            tl.atomic_add(non_finite + cells + chunk * WIDTH, added, mask=mask & (is_finite == 0), sem="relaxed")
        else:
            tl.atomic_add(sums + cells + chunk * WIDTH, added, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["S", "Q"])
def backward_kernel(
    grad_value,  # (B, S, H, C) zeros in ACC, int64 where FIXED
    non_finite,  # (B, S, H, C) zeros in ACC where FIXED, else not touched
    unit,  # one number in ACC where FIXED, else not read: units per 1
    grad_reference,  # (B, Q, H, L, R) in ACC where NEEDS_REFERENCE, else not touched
    grad_points,  # (B, Q, H, L, P, 2)
    grad_weights,  # (B, Q, H, L, P): of the logits where R > 0
    grad_output,  # (B, Q, H, C)
    value,  # (B, S, H, C)
    reference,  # (B, Q, L, R), not read where R is 0
    points,  # (B, Q, H, L, P, 2): locations where R is 0, else offsets
    weights,  # (B, Q, H, L, P): weights where R is 0, else logits
    levels,
    S,
    Q,
    H: tl.constexpr,
    C: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    R: tl.constexpr,
    NEEDS_REFERENCE: tl.constexpr,
    FIXED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    LANE: tl.constexpr,
    PADDED: tl.constexpr,
    OFFSET: tl.constexpr,
    ACC: tl.constexpr,
):
    image, head, first, rows, is_query = program_rows(Q, H, ROWS)
    query = image * Q + first
    # Half-precision loads of more channels a lane would be moved through shared memory to where additions want them.
    channels = tl.max_contiguous(tl.multiple_of(tl.arange(0, WIDTH), LANE), LANE)[None, :]
    point_offset = (query * H + head) * (L * P) + rows * (H * L * P)
    points += point_offset * 2
    weights += point_offset
    reference += query * (L * R) + rows * (L * R)
    table = (image * S * H + head) * C
    if R > 0:
        largest, total = softmax_terms(weights, channels, L * P, WIDTH, ACC)
        scale = 1 / total
    target = (grad_value, non_finite, tl.load(unit)) if FIXED else (grad_value, non_finite, 1.0)

    cotangent = ()
    grad_output += (query * H + head) * C + rows * (H * C) + channels
    for chunk in tl.static_range(CHUNKS):
        is_channel = chunk * WIDTH + channels < C
        cotangent += (tl.load(grad_output + chunk * WIDTH, mask=is_channel, other=0.0).to(ACC),)

    columns = tl.arange(0, PADDED)[None, :]
    # One column a point; stored together at the end, whole cache lines at once.
    grad_x = tl.zeros((ROWS, PADDED), ACC)
    grad_y = tl.zeros((ROWS, PADDED), ACC)
    products = tl.zeros((ROWS, PADDED), ACC)
    for level in tl.static_range(L):
        h, w = level_size(levels[level])
        shift_x, shift_y, scale_x, scale_y = level_affine(reference, level, h, w, R, P, ACC)
        sum_x = tl.zeros((ROWS, 1), ACC)
        sum_y = tl.zeros((ROWS, 1), ACC)
        sum_w = tl.zeros((ROWS, 1), ACC)
        sum_h = tl.zeros((ROWS, 1), ACC)
        for point in tl.range(0, P):
            given_x, given_y = load_pair(points + (level * P + point) * 2, ACC)
            weight = tl.load(weights + level * P + point).to(ACC)
            if R > 0:
                weight = tl.exp(weight - largest) * scale
            x, right, has_left, has_right = neighbours(given_x * scale_x + shift_x, w)
            y, lower, has_upper, has_lower = neighbours(given_y * scale_y + shift_y, h)
            left, upper = 1 - right, 1 - lower
            has_upper, has_lower = has_upper & is_query, has_lower & is_query
            cell = (y.to(OFFSET) * w + x) * (H * C)
            upper_row = table + cell + channels
            lower_row = upper_row + w.to(OFFSET) * (H * C)

            upper_left = dot(value + upper_row, has_upper & has_left, cotangent, WIDTH, C, ACC)
            upper_right = dot(value + upper_row + H * C, has_upper & has_right, cotangent, WIDTH, C, ACC)
            lower_left = dot(value + lower_row, has_lower & has_left, cotangent, WIDTH, C, ACC)
            lower_right = dot(value + lower_row + H * C, has_lower & has_right, cotangent, WIDTH, C, ACC)
            grad_weight = upper * (left * upper_left + right * upper_right)
            grad_weight += lower * (left * lower_left + right * lower_right)
            is_column = columns == level * P + point
            products = tl.where(is_column, grad_weight, products)
            slope_x = weight * (upper * (upper_right - upper_left) + lower * (lower_right - lower_left))
            slope_y = weight * (left * (lower_left - upper_left) + right * (lower_right - upper_right))
            grad_x = tl.where(is_column, slope_x * scale_x, grad_x)
            grad_y = tl.where(is_column, slope_y * scale_y, grad_y)
            if NEEDS_REFERENCE:
                sum_x += slope_x
                sum_y += slope_y
                if R == 4:
                    # An infinite offset lies outside and has no gradient, not zero times infinity.
                    sum_w += tl.where(slope_x == 0, 0.0, slope_x * given_x)
                    sum_h += tl.where(slope_y == 0, 0.0, slope_y * given_y)

            upper *= weight
            lower *= weight
            scatter(target, upper_row, has_upper & has_left, upper * left, cotangent, FIXED, WIDTH, C)
            scatter(target, upper_row + H * C, has_upper & has_right, upper * right, cotangent, FIXED, WIDTH, C)
            scatter(target, lower_row, has_lower & has_left, lower * left, cotangent, FIXED, WIDTH, C)
            scatter(target, lower_row + H * C, has_lower & has_right, lower * right, cotangent, FIXED, WIDTH, C)
        if NEEDS_REFERENCE:
            sums = grad_reference + ((query * H + head) * L + level) * R + rows * (H * L * R)
            store_pair(sums, sum_x * w, sum_y * h, is_query)
            if R == 4:
                store_pair(sums + 2, sum_w * w * (0.5 / P), sum_h * h * (0.5 / P), is_query)
        table += h.to(tl.int64) * w * (H * C)

    if R > 0:
        logits = tl.load(weights + columns, mask=columns < L * P, other=float("-inf")).to(ACC)
        probabilities = tl.exp(logits - largest) * scale
        products *= probabilities
        products -= probabilities * tl.sum(products, 1, keep_dims=True)
    pointers = grad_weights + point_offset + columns
    tl.store(pointers, products.to(grad_weights.dtype.element_ty), mask=is_query & (columns < L * P))
    pairs = tl.reshape(tl.join(grad_x, grad_y), (ROWS, 2 * PADDED))
    columns = tl.arange(0, 2 * PADDED)[None, :]
    pointers = grad_points + point_offset * 2 + columns
    tl.store(pointers, pairs.to(grad_points.dtype.element_ty), mask=is_query & (columns < 2 * L * P))
