"""What the machine allows, measured here: how fast rows are gathered from the L2 cache, how fast memory is copied."""

import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.problems import Case, Inputs


class Limits(NamedTuple):
    """Bytes a second. gather is None on a GPU, whose caches no function of torch measures."""

    copy: float  # read plus written
    gather: float | None


def seconds(function: Callable[[], object], device: str) -> float:
    """Wall seconds of one call; on a GPU those between two events, with the caches flushed before."""
    if device == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    _flush(device)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


@cache
def _sweeper(device: str) -> Tensor:
    return torch.empty(1 << 28, dtype=torch.uint8, device=device)  # several times the L2 of any GPU so far


def _flush(device: str) -> None:
    _sweeper(device).zero_()


@cache
def measured_limits(device: str, threads: int) -> Limits:
    """The machine's limits with this number of threads, which must be the number that is set.

    copy: the best of copies of 256 MiB. gather: `embedding_bag` without weights, which does little but read rows, over
    random rows of 32 float32 in tables of 256 and 512 KiB (larger than any L1, smaller than the L2 of servers): within
    a tenth of the same loop in C with vector instructions. A path does more for each row: it multiplies.
    """
    source = torch.zeros(1 << 26, device=device)
    target = torch.empty_like(source)
    copy = min(seconds(lambda: target.copy_(source), device) for _ in range(7))
    rate = 2 * source.numel() * source.element_size() / copy
    if device != "cpu":
        return Limits(rate, None)
    return Limits(rate, max(_gather_rate(kib) for kib in (256, 512)))


def _gather_rate(kib: int) -> float:
    table = torch.ones(kib * 1024 // (32 * 4), 32)
    rows = torch.randint(len(table), (1 << 14, 64), dtype=torch.int32)
    best = min(seconds(lambda: F.embedding_bag(rows, table, mode="sum"), "cpu") for _ in range(25))
    return rows.numel() * 32 * 4 / best


def unique_bytes(case: Case, inputs: Inputs) -> int:
    """Bytes that have to pass at least once: inputs read and outputs written, of value at most what is gathered.

    Backward reads the inputs and the cotangent and writes a gradient of each input.
    """
    value, *others = (t for t in inputs.arguments(case.entry) if t is not inputs.shapes)
    small = sum(t.nbytes for t in others)
    read = min(value.nbytes, gathered_bytes(case._replace(direction="forward"), inputs))
    forward = read + small + inputs.cotangent.nbytes
    if case.direction == "forward":
        return forward
    grads = sum(leaf.nbytes for leaf in inputs.leaves(case.entry))
    return 2 * forward + grads


def gathered_bytes(case: Case, inputs: Inputs) -> int:
    """Bytes of the rows of value that points touch, four a point; backward reads them and adds to their gradients."""
    rows = 4 * inputs.weights.numel()
    return rows * inputs.value.shape[3] * inputs.value.element_size() * (1 if case.direction == "forward" else 4)


def lower_bound(case: Case, inputs: Inputs, limits: Limits) -> float:
    """Seconds below which no implementation of this kind can come here: the slower of the two limits."""
    memory = unique_bytes(case, inputs) / limits.copy
    return memory if limits.gather is None else max(memory, gathered_bytes(case, inputs) / limits.gather)
