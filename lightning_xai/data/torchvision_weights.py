"""Weights of torchvision's networks: from a file, or downloaded where that is asked for; checked name by name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

DOWNLOAD = "download"
# Where a training script's file keeps the weights among other things.
NESTED = ("model", "state_dict")


def weight_file(network: str, weights: str | os.PathLike) -> Path:
    """The file of weights, downloaded first (torchvision's best for the network, kept in torch.hub's folder) if
    `weights` is "download".

    Raises FileNotFoundError for a file that is not there, ConnectionError where it cannot be downloaded.
    """
    if str(weights) != DOWNLOAD:
        if not Path(weights).is_file():
            raise FileNotFoundError(f"{weights}: no such file; give a file of weights of {network}, or {DOWNLOAD!r}.")
        return Path(weights)
    from torchvision.models import get_model_weights

    chosen = get_model_weights(network).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rsplit("/", 1)[1]
    if not file.is_file():
        try:
            chosen.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise ConnectionError(
                f"weights of {network} cannot be downloaded from {chosen.url} ({error}); fetch that file elsewhere and "
                "give its path."
            ) from error
    return file


def sha256_of(file: Path) -> str:
    """The file's SHA-256 as hexadecimal digits."""
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def read_state(file: Path) -> Mapping[str, Tensor]:
    """The state dict in a file of torch.save, running nothing that it holds. Raises ValueError for anything else."""
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own words advise to run what is in it
        raise ValueError(
            f"{file} cannot be read as a file of weights: it is not of torch.save, or holds objects, which are not run."
        ) from error
    except Exception as error:  # damaged files raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file} cannot be read as a file of weights: {reason}") from error
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file} holds no state dict (names with tensors) but {_described(content)}.")
    return content


def _described(content: Any) -> str:
    kind = f"a {type(content).__name__}"
    return f"{kind} of {', '.join(map(repr, list(content)[:4]))}" if isinstance(content, Mapping) else kind


def fill(net: nn.Module, file: Path, needed: Callable[[str], bool]) -> None:
    """Give the network's parameters and buffers whose names are `needed` those of a file, as float32 on the CPU.

    Raises ValueError for a file where one of those names is missing, unexpected or of another shape; batch norm's count
    of batches, which evaluation does not read, may be missing.
    """
    theirs = {name: value for name, value in read_state(file).items() if needed(name)}
    ours = {name: value for name, value in net.state_dict().items() if needed(name)}
    for name in ours:
        if name.endswith("num_batches_tracked"):
            theirs[name] = torch.zeros((), dtype=torch.int64)
    said = [
        _counted([name for name in ours if name not in theirs], "missing"),
        _counted([name for name in theirs if name not in ours], "unexpected"),
        *(
            f"{name!r} has shape {tuple(theirs[name].shape)} instead of {tuple(value.shape)}"
            for name, value in ours.items()
            if name in theirs and theirs[name].shape != value.shape
        ),
    ]
    if faults := [text for text in said if text]:
        raise ValueError(f"{file} does not fit the network: {'; '.join(faults[:3])}.")
    exact = {name: value.float() if value.is_floating_point() else value for name, value in theirs.items()}
    net.load_state_dict(exact, strict=False, assign=True)


def _counted(names: list[str], what: str) -> str:
    if not names:
        return ""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]!r}{others} {'are' if others else 'is'} {what}"
