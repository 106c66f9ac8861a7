"""Looking at a network in the middle of its training without leaving a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn

from lightning_xai.explain.evaluation_mode import evaluation_mode


@contextmanager
def undisturbed(trainer: pl.Trainer, module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients, under the trainer's precision; modes and random states are put back."""
    with isolate_rng(), evaluation_mode(module), torch.inference_mode(), trainer.precision_plugin.forward_context():
        yield


def require_whole_network(trainer: pl.Trainer, callback: pl.Callback) -> None:
    """Raise RuntimeError where a process holds but a part of the network, so that none can run it alone."""
    if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)):
        raise RuntimeError(
            f"{type(callback).__name__} runs the network on the first process alone, which "
            f"{type(trainer.strategy).__name__} cannot: leave the callback out, or train with ddp"
        )
