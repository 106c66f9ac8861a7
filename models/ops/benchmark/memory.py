"""How much memory a case takes beyond its inputs and outputs."""

import ctypes
import gc
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmark.contestants import contestants
from benchmark.problems import Case, make_inputs

SMALL = ((4, 5), (2, 3), (1, 2), (1, 1))


def peak_bytes(case: Case, name: str, threads: int) -> int | None:
    """Peak bytes during one call beyond inputs and outputs (gradients included); None where it cannot be told.

    On a GPU: what torch's allocator counts. On a CPU: physical pages, because kernels also take memory that torch does
    not count (malloc in C++, scratch of a thread). A fresh process runs the contestant on a tiny case, which loads code
    and starts threads, gives free memory back, sets the kernel's high-water mark of its pages back and makes the call:
    scratch that an implementation keeps for the next call counts too. Exact to about a megabyte; Linux only.
    """
    if case.device != "cpu":
        return _peak_of_allocator(case, name)
    if not Path("/proc/self/clear_refs").exists():
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_peak_of_pages, case, name, threads).result()


def _pages(field: str) -> int:
    (kib,) = re.findall(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kib) * 1024


def _peak_of_pages(case: Case, name: str, threads: int) -> int:
    torch.set_num_threads(threads)
    contestant = contestants(case.device, case.dtype)[name]()
    levels = SMALL[: make_inputs(case._replace(batch=1)).shapes.shape[0]]
    contestant.run(case, make_inputs(case, levels, queries=3))
    inputs = make_inputs(case)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _pages("VmRSS")
    results = contestant.run(case, inputs)
    return _pages("VmHWM") - before - sum(result.nbytes for result in results)


def _peak_of_allocator(case: Case, name: str) -> int:
    contestant, inputs = contestants(case.device, case.dtype)[name](), make_inputs(case)
    contestant.run(case, inputs)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(case.device)
    before = torch.cuda.memory_allocated(case.device)
    results = contestant.run(case, inputs)
    torch.cuda.synchronize(case.device)
    return torch.cuda.max_memory_allocated(case.device) - before - sum(result.nbytes for result in results)
