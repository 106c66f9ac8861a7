"""`predict` of a classifier leaves one line an image in a table."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from lightning_xai.callbacks.prediction_writer import PredictionWriter


class WritePredictions(PredictionWriter):
    """Write `<run folder>/predictions.csv`: index, file, and the `best` classes with their probabilities.

    The lines of all processes end in the one file, ordered by index; an image that comes again is
    written once, see `PredictionWriter`.
    """

    def __init__(self, best: int = 5) -> None:
        super().__init__()
        if best < 1:
            raise ValueError(f"best={best} must be at least 1 class")
        self.best = best

    def collect(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, prediction: dict[str, Tensor]
    ) -> Iterator[tuple[int, list[Any]]]:
        path = getattr(getattr(trainer.datamodule, "predict_set", None), "path", None)
        shares = prediction["logits"].softmax(1)
        best = shares.topk(min(self.best, shares.shape[1]), dim=1)
        for index, values, classes in zip(prediction["index"].tolist(), *best, strict=True):
            said = [word for pair in zip(classes.tolist(), values.tolist(), strict=True) for word in pair]
            said[::2] = [pl_module.name_of(place) for place in said[::2]]
            said[1::2] = [f"{share:.6f}" for share in said[1::2]]
            yield index, [index, "" if path is None else str(path(index)), *said]

    def write(self, trainer: pl.Trainer, entries: dict[int, list[Any]]) -> None:
        many = max((len(row) - 2) // 2 for row in entries.values())
        file = Path(trainer.default_root_dir) / "predictions.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "w", newline="") as stream:
            writer = csv.writer(stream)
            names = [word for place in range(1, many + 1) for word in (f"class_{place}", f"probability_{place}")]
            writer.writerow(["index", "file", *names])
            writer.writerows(entries.values())
        print(f"predictions of {len(entries)} images: {file}")
