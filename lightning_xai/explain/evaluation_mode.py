"""A network as it is evaluated, for a while: no dropout, no statistics that change, no random number drawn."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(net: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode and torch's random states apart; all of it is put back as it was."""
    gpus = {parameter.device.index for parameter in net.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(sorted(gpus)), in_modes(dict.fromkeys(net.modules(), False)):
        yield


@contextmanager
def in_modes(training: Mapping[nn.Module, bool]) -> Iterator[None]:
    """Each of these modules in training mode or not, and back as it was."""
    before = {module: module.training for module in training}
    try:
        for module, mode in training.items():
            module.training = mode
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
