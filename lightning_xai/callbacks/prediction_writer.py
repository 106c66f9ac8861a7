"""What `predict` says of each sample, of all processes together, for callbacks that write it into one file."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.callbacks import BasePredictionWriter


class PredictionWriter(BasePredictionWriter):
    """Calls `collect` with each batch, and `write` once with the entries of all samples, on the first process.

    A sample that comes again, as the picture that a data set puts in the place of an unreadable one does, has one
    entry: what it was given first.
    """

    def __init__(self) -> None:
        super().__init__("batch_and_epoch")
        self.entries: dict[int, Any] = {}

    @abstractmethod
    def collect(self, trainer: pl.Trainer, pl_module: pl.LightningModule, prediction: Any) -> Iterator[tuple[int, Any]]:
        """The number and the entry of each sample of a batch."""

    @abstractmethod
    def write(self, trainer: pl.Trainer, entries: dict[int, Any]) -> None:
        """Write the entries of all samples, which come in the order of their numbers."""

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.entries = {}

    def write_on_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, prediction: Any, *args: Any
    ) -> None:
        for number, entry in self.collect(trainer, pl_module, prediction):
            self.entries.setdefault(number, entry)

    def write_on_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        parts = [self.entries]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            dist.all_gather_object(parts, self.entries)
        if trainer.is_global_zero:
            together = {number: entry for part in reversed(parts) for number, entry in part.items()}
            self.write(trainer, dict(sorted(together.items())))
