"""The implementations ("paths") of the operator, and which of them computes a call.

Every path gives the same result up to rounding. On the CPU the compiled kernels run where they are built or can be,
else weighted rows; on CUDA the Triton kernels where Triton compiles for the device, else grid_sample, which is also
every other device's.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from ms_deform_attn import build, grid_sample, weighted_rows
from ms_deform_attn.formulation import Formulation


class Path(NamedTuple):
    """An implementation: `functions` loads what offers forward, backward, fused_forward and fused_backward."""

    name: str
    devices: tuple[str, ...] | None  # None: every device
    available: Callable[[torch.device], bool]
    functions: Callable[[], object]
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

    def computes(self, value: Tensor) -> bool:
        """Whether this path can compute a call with this value here and now."""
        on_device = self.devices is None or value.device.type in self.devices
        return on_device and value.dtype in self.dtypes and self.available(value.device)


@cache
def _triton_starts() -> bool:
    """Whether Triton and what it needs are there: it compiles a module for the driver when it is first used."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return False
    try:
        import_module("triton").runtime.driver.active.get_current_target()
    except Exception as error:
        warnings.warn(
            f"ms_deform_attn: Triton cannot be used ({error}). Calls on CUDA use grid_sample, slower and with "
            "more memory. Triton needs a C compiler (gcc) and Python's headers where it runs",
            stacklevel=3,
        )
        return False
    return True


def _triton_runs(device: torch.device) -> bool:
    """Triton compiles for NVIDIA's devices from compute capability 8.0."""
    return _triton_starts() and torch.cuda.get_device_capability(device) >= (8, 0)


def _library_is_there(device: torch.device) -> bool:
    return build.available()


def _always(device: torch.device) -> bool:
    return True


# In the order of preference.
PATHS = (
    Path("compiled", ("cpu",), _library_is_there, cache(lambda: import_module("ms_deform_attn.compiled"))),
    Path("weighted_rows", ("cpu",), _always, cache(lambda: Formulation(weighted_rows))),
    Path("triton", ("cuda",), _triton_runs, cache(lambda: import_module("ms_deform_attn.triton_gpu"))),
    Path("grid_sample", None, _always, cache(lambda: Formulation(grid_sample))),
)

# For the whole process, since autograd differentiates CUDA calls in threads of its own.
_forced: Path | None = None


def chosen_path(value: Tensor) -> Path:
    """The path that computes a call with this value. Raises RuntimeError where `use_path` asks for the impossible."""
    if _forced is None:
        return next(path for path in PATHS if path.computes(value))
    if not _forced.computes(value):
        raise RuntimeError(
            f"use_path({_forced.name!r}) is in force, but that path cannot compute {value.dtype} on {value.device} here"
        )
    return _forced


def available_paths(device: torch.device) -> list[str]:
    """Names of the paths that can compute on this device here, the preferred first."""
    return [path.name for path in PATHS if path.computes(torch.empty(0, device=device))]


@contextmanager
def use_path(name: str) -> Iterator[None]:
    """Let one path compute every call of this process: "compiled", "weighted_rows", "triton" or "grid_sample".

    Raises ValueError for another name; a call that the path cannot compute raises RuntimeError.
    """
    global _forced
    paths = {path.name: path for path in PATHS}
    if name not in paths:
        raise ValueError(f"path is {name!r}, expected one of {', '.join(paths)}")
    before, _forced = _forced, paths[name]
    try:
        yield
    finally:
        _forced = before
