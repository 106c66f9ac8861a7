"""The Triton kernel of the forward pass.

A lane holds 16 bytes of a row of value at a time. Rows are read in pieces (`CHUNKS` of `WIDTH` channels) by few lanes,
because whatever concerns a point alone is computed by every lane of its row.
"""

import triton
import triton.language as tl

from ms_deform_attn.triton_sampling import (
    level_affine,
    level_size,
    load_pair,
    neighbours,
    program_rows,
    softmax_terms,
)


@triton.jit
def load_cells(pointers, exists, chunk: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr):
    """Channels `chunk` of the cells behind pointers, zero where no cell exists."""
    if (chunk + 1) * WIDTH > C:
        exists = exists & (chunk * WIDTH + tl.arange(0, WIDTH)[None, :] < C)
    cells = tl.load(pointers + chunk * WIDTH, mask=exists, other=0.0)
    if cells.dtype == tl.bfloat16:
        # The upper half of a float32. Said so it takes two instructions for two channels, a conversion takes three.
        cells = (cells.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return cells.to(ACC)


@triton.jit(do_not_specialize=["S", "Q"])
def forward_kernel(
    output,  # (B, Q, H, C)
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
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    OFFSET: tl.constexpr,
    ACC: tl.constexpr,
):
    image, head, first, rows, is_query = program_rows(Q, H, ROWS)
    query = image * Q + first
    channels = tl.arange(0, WIDTH)[None, :]
    points += (query * H + head) * (L * P * 2) + rows * (H * L * P * 2)
    weights += (query * H + head) * (L * P) + rows * (H * L * P)
    reference += query * (L * R) + rows * (L * R)
    value += (image * S * H + head) * C
    if R > 0:
        largest, total = softmax_terms(weights, channels, L * P, WIDTH, ACC)

    sums = ()
    for _ in tl.static_range(CHUNKS):
        sums += (tl.zeros((ROWS, WIDTH), ACC),)
    for level in tl.static_range(L):
        h, w = level_size(levels[level])
        shift_x, shift_y, scale_x, scale_y = level_affine(reference, level, h, w, R, P, ACC)
        for point in tl.range(0, P):
            given_x, given_y = load_pair(points + (level * P + point) * 2, ACC)
            weight = tl.load(weights + level * P + point).to(ACC)
            if R > 0:
                weight = tl.exp(weight - largest)
            x, right, has_left, has_right = neighbours(given_x * scale_x + shift_x, w)
            y, lower, has_upper, has_lower = neighbours(given_y * scale_y + shift_y, h)
            # A cell at distance zero from the point's other neighbour has no part in it and is not read.
            has_right = has_right & (right > 0)
            has_lower = has_lower & (lower > 0)
            cell = (y.to(OFFSET) * w + x) * (H * C)
            upper_row = value + cell + channels
            lower_row = upper_row + w.to(OFFSET) * (H * C)
            upper_weight = weight * (1 - lower)
            lower_weight = weight * lower
            upper_left, upper_right = upper_weight * (1 - right), upper_weight * right
            lower_left, lower_right = lower_weight * (1 - right), lower_weight * right
            added = ()
            for chunk in tl.static_range(CHUNKS):
                total_chunk = sums[chunk]
                cells = load_cells(upper_row, has_upper & has_left, chunk, WIDTH, C, ACC)
                total_chunk += upper_left * cells
                cells = load_cells(upper_row + H * C, has_upper & has_right, chunk, WIDTH, C, ACC)
                total_chunk += upper_right * cells
                cells = load_cells(lower_row, has_lower & has_left, chunk, WIDTH, C, ACC)
                total_chunk += lower_left * cells
                cells = load_cells(lower_row + H * C, has_lower & has_right, chunk, WIDTH, C, ACC)
                total_chunk += lower_right * cells
                added += (total_chunk,)
            sums = added
        value += h.to(tl.int64) * w * (H * C)

    output += (query * H + head) * C + rows * (H * C) + channels
    for chunk in tl.static_range(CHUNKS):
        result = sums[chunk]
        if R > 0:
            result = result / total
        is_stored = is_query & (chunk * WIDTH + channels < C)
        tl.store(output + chunk * WIDTH, result.to(output.dtype.element_ty), mask=is_stored)
