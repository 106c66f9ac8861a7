"""One check a kind of parity case, driven by the case's `config` alone, through the project's public code."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

CHECKS: dict[str, Callable] = {}


def check(kind: str) -> Callable:
    """Register the decorated function as the check of all cases of `kind`."""

    def register(function: Callable) -> Callable:
        CHECKS[kind] = function
        return function

    return register


for file in sorted(Path(__file__).parent.glob("[!_]*.py")):
    import_module(f"checks.{file.stem}")
