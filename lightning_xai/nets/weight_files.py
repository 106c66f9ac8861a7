"""Reads files of weights, whoever wrote them, without running code from them, and names what does not fit."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch

NAMED = 8  # keys that an error lists; a file of another network would list hundreds


def read_weight_file(path: str | Path) -> object:
    """What a .safetensors file or a file of torch.save holds, on the CPU.

    Of Python's classes only argparse.Namespace is let in: the original DETR repositories save their arguments as one.
    Raises FileNotFoundError where there is no such file, ValueError where it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"file of weights '{path}' does not exist.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except UnpicklingError as error:  # torch's own words advise to run what is in it
        raise ValueError(
            f"'{path}' cannot be read as a file of weights: not of torch.save, or holds objects, which are not run"
        ) from error
    except Exception as error:  # damaged files raise anything: UnpicklingError, OSError, SafetensorError ...
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"'{path}' cannot be read as a file of weights: {reason}") from error


def other_names(given: Collection[str], own: Collection[str]) -> dict[str, list[str]]:
    """The names of a network's `own` weights that are "missing" in a file, and those "unexpected" there."""
    return {"missing": [k for k in own if k not in given], "unexpected": [k for k in given if k not in own]}


def listed(problems: Mapping[str, Sequence[str]]) -> str:
    """Kinds of problems with the first few names of each, "" where there are none."""
    return "; ".join(f"{kind} {some_of(names)}" for kind, names in problems.items() if names)


def some_of(names: Sequence[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
