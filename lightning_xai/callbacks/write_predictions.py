"""`predict` of a classifier leaves one line an image in a table."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor


class WritePredictions(BasePredictionWriter):
    """Write `<run folder>/predictions.csv`: index, file, and the `best` classes with their probabilities.

    The lines of all processes end in the one file, ordered by index. An image that comes again, as the one that a data
    set puts in the place of an unreadable picture does, is written once.
    """

    def __init__(self, best: int = 5) -> None:
        super().__init__("batch_and_epoch")
        if best < 1:
            raise ValueError(f"best={best} must be at least 1 class")
        self.best = best
        self.rows: dict[int, list[Any]] = {}

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.rows = {}

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: dict[str, Tensor],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        path = getattr(getattr(trainer.datamodule, "predict_set", None), "path", None)
        shares = prediction["logits"].softmax(1)
        best = shares.topk(min(self.best, shares.shape[1]), dim=1)
        for index, values, classes in zip(prediction["index"].tolist(), *best, strict=True):
            said = [word for pair in zip(classes.tolist(), values.tolist(), strict=True) for word in pair]
            said[::2] = [pl_module.name_of(place) for place in said[::2]]
            said[1::2] = [f"{share:.6f}" for share in said[1::2]]
            self.rows[index] = [index, "" if path is None else str(path(index)), *said]

    def write_on_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        parts = [self.rows]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            dist.all_gather_object(parts, self.rows)
        if not trainer.is_global_zero:
            return
        rows = {index: row for part in parts for index, row in part.items()}
        many = max((len(row) - 2) // 2 for row in rows.values())
        file = Path(trainer.default_root_dir) / "predictions.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "w", newline="") as stream:
            writer = csv.writer(stream)
            names = [word for place in range(1, many + 1) for word in (f"class_{place}", f"probability_{place}")]
            writer.writerow(["index", "file", *names])
            writer.writerows(rows[index] for index in sorted(rows))
        print(f"predictions of {len(rows)} images: {file}")
