"""Reads files of weights, whoever wrote them, without running code from them."""

import argparse
from pathlib import Path

import torch


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
    except Exception as error:  # damaged files raise anything: UnpicklingError, OSError, SafetensorError ...
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"'{path}' cannot be read as a file of weights: {reason}") from error
