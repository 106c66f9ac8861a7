"""`predict` of a classifier leaves the features and logits of all images in one file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor


class WriteFeatures(BasePredictionWriter):
    """Write `file` (.npz) with `index` (n,), `features` (n, C) and `logits` (n, classes), ordered by index.

    `predict_step` gives these as tensors, one row an image of the batch. All processes' rows end in the one file, by
    way of a file of each beside it, so processes need one file system; an image that comes again is written once. The
    file appears when it is complete.
    """

    def __init__(self, file: Path) -> None:
        super().__init__("batch_and_epoch")
        self.file = file
        self.rows: list[dict[str, np.ndarray]] = []

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.rows = []

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: dict[str, Tensor],
        *args: Any,
    ) -> None:
        missing = [name for name in ("index", "features", "logits") if name not in prediction]
        if missing:
            raise ValueError(
                f"{type(pl_module).__name__}.predict_step gives no {', '.join(missing)}; debug sets need a classifier "
                "such as lightning_xai.tasks.classification.ClassificationTask."
            )
        self.rows.append(
            {
                "index": prediction["index"].cpu().numpy(),
                "features": prediction["features"].float().cpu().numpy(),
                "logits": prediction["logits"].float().cpu().numpy(),
            }
        )

    def write_on_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        _save(self._part(trainer.global_rank), _together(self.rows))
        trainer.strategy.barrier("features")
        if trainer.is_global_zero:
            parts = [self._part(rank) for rank in range(trainer.world_size)]
            _save(self.file, _together([_load(part) for part in parts]))
            for part in parts:
                part.unlink()
        trainer.strategy.barrier("features written")

    def _part(self, rank: int) -> Path:
        return self.file.with_name(f"{self.file.stem}.process{rank}.npz")


def _together(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """All rows, ordered by index and each index once."""
    arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    _, first = np.unique(arrays["index"], return_index=True)
    return {name: array[first] for name, array in arrays.items()}


def _save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    half = file.with_name(file.name + ".half")
    with half.open("wb") as stream:
        np.savez(stream, **arrays)
    half.replace(file)


def _load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
