"""Triton functions that both kernels share: which cells a point lies between, how its numbers are read and written.

A program computes `ROWS` queries of one head. The numbers of a point are columns (ROWS, 1), those of its channels
(ROWS, WIDTH).
"""

import triton
import triton.language as tl


@triton.jit
def program_rows(Q, H: tl.constexpr, ROWS: tl.constexpr):
    """(image, head, first query, its rows' distance from there, whether each is a query) of this program.

    Heads alternate fastest, so that programs that run together read the same cache lines of locations and value.
    Rows past the last query repeat it, which makes every load valid; stores leave them out.
    """
    program = tl.program_id(0)
    head = program % H
    tiles = tl.cdiv(Q, ROWS)
    image = (program // H // tiles).to(tl.int64)
    first = program // H % tiles * ROWS
    rows = tl.arange(0, ROWS)[:, None]
    return image, head, first, tl.minimum(rows, Q - 1 - first), rows < Q - first


@triton.jit
def level_size(level):
    """(h, w) of a level packed by `packed_levels`."""
    return (level >> 33).to(tl.int32), ((level >> 1) & 0xFFFFFFFF).to(tl.int32)


@triton.jit
def load_pair(pointers, ACC: tl.constexpr):
    """(x, y) stored side by side: one load of an integer that holds both, where there is one wide enough."""
    dtype: tl.constexpr = pointers.dtype.element_ty
    if dtype.primitive_bitwidth == 16:
        pair = tl.load(pointers.to(tl.pointer_type(tl.uint32)))
        x = (pair & 0xFFFF).to(tl.uint16).to(dtype, bitcast=True)
        y = (pair >> 16).to(tl.uint16).to(dtype, bitcast=True)
    elif dtype.primitive_bitwidth == 32:
        pair = tl.load(pointers.to(tl.pointer_type(tl.uint64)))
        x = (pair & 0xFFFFFFFF).to(tl.uint32).to(dtype, bitcast=True)
        y = (pair >> 32).to(tl.uint32).to(dtype, bitcast=True)
    else:
        x = tl.load(pointers)
        y = tl.load(pointers + 1)
    return x.to(ACC), y.to(ACC)


@triton.jit
def store_pair(pointers, x, y, mask):
    """The reverse of load_pair, in the type that the pointers point to."""
    dtype: tl.constexpr = pointers.dtype.element_ty
    if dtype.primitive_bitwidth == 16:
        low = x.to(dtype).to(tl.uint16, bitcast=True).to(tl.uint32)
        high = y.to(dtype).to(tl.uint16, bitcast=True).to(tl.uint32)
        tl.store(pointers.to(tl.pointer_type(tl.uint32)), low | (high << 16), mask=mask)
    elif dtype.primitive_bitwidth == 32:
        low = x.to(dtype).to(tl.uint32, bitcast=True).to(tl.uint64)
        high = y.to(dtype).to(tl.uint32, bitcast=True).to(tl.uint64)
        tl.store(pointers.to(tl.pointer_type(tl.uint64)), low | (high << 32), mask=mask)
    else:
        tl.store(pointers, x.to(dtype), mask=mask)
        tl.store(pointers + 1, y.to(dtype), mask=mask)


@triton.jit
def softmax_terms(logits, columns, N: tl.constexpr, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """(largest logit, sum of exponentials) over the N logits behind each pointer.

    They are read in pieces as wide as those of value, `columns`, and so lie in registers as value does: from another
    layout everything that depends on the result would be moved at every point.
    """
    largest = tl.load(logits).to(ACC)
    for start in tl.static_range(0, N, WIDTH):
        piece = tl.load(logits + start + columns, mask=start + columns < N, other=float("-inf")).to(ACC)
        largest = tl.maximum(largest, tl.max(piece, 1, keep_dims=True))
    total = tl.zeros_like(largest)
    for start in tl.static_range(0, N, WIDTH):
        piece = tl.load(logits + start + columns, mask=start + columns < N, other=float("-inf")).to(ACC)
        total += tl.sum(tl.exp(piece - largest), 1, keep_dims=True)
    return largest, total


@triton.jit
def level_affine(reference, level: tl.constexpr, h, w, R: tl.constexpr, P: tl.constexpr, ACC: tl.constexpr):
    """(shift_x, shift_y, scale_x, scale_y): a point lies shift + scale * given cells from the first cell's centre.

    Given are locations (R = 0), offsets from reference points (R = 2) or from reference boxes (R = 4).
    """
    if R == 0:
        shift_x = tl.full((), -0.5, ACC)
        shift_y = shift_x
        scale_x = w.to(ACC)
        scale_y = h.to(ACC)
    else:
        centre_x, centre_y = load_pair(reference + level * R, ACC)
        shift_x = centre_x * w - 0.5
        shift_y = centre_y * h - 0.5
        if R == 2:
            scale_x = tl.full((), 1.0, ACC)
            scale_y = scale_x
        else:
            box_w, box_h = load_pair(reference + level * R + 2, ACC)
            scale_x = box_w * w * (0.5 / P)
            scale_y = box_h * h * (0.5 / P)
    return shift_x, shift_y, scale_x, scale_y


@triton.jit
def neighbours(position, size):
    """(left cell, distance to it, whether the left and whether the right cell exist) along one axis.

    Far away, infinity included, is moved to -2, where neither exists. NaN stays: its distance poisons the sum while no
    cell exists for it.
    """
    position = tl.where((position < -1) | (position >= size), -2.0, position)
    left = tl.floor(position)
    return left.to(tl.int32), position - left, left >= 0, (left >= -1) & (left < size - 1)
