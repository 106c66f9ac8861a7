"""Maps of a debug set's own images, before and after a classifier is fine-tuned on them."""

from copy import copy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Subset

from lightning_xai.callbacks.explanations import ExplanationCallback


class DebugSetExplanations(ExplanationCallback):
    """`ExplanationCallback` on the training images below `folder`, as they are evaluated: at the start and the end.

    The other arguments are those of `ExplanationCallback`. Raises ValueError where no training image lies in `folder`,
    TypeError where the training is not given a data module of image folders.
    """

    def __init__(self, folder: str, methods: list[str] | dict[str, dict | None], samples: int | list[int] = 4):
        super().__init__(methods, samples, "truth", name="debug_set")
        self.folder = folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module, self._loader(trainer.datamodule))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module, self._loader(trainer.datamodule))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing: it is not the validation images that are drawn."""

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing: a test has no debug set."""

    def _loader(self, data: Any) -> DataLoader:
        if not hasattr(getattr(data, "train_set", None), "path"):
            raise TypeError(
                f"{type(data).__name__} has no training set of image files, of which those in '{self.folder}' could be "
                "explained; train with an ImageFolderModule"
            )
        folder = Path(self.folder).resolve()
        inside = [i for i in range(len(data.train_set)) if folder in data.train_set.path(i).resolve().parents]
        if not inside:
            raise ValueError(f"no training image lies in '{self.folder}', whose images are to be explained")
        evaluated = copy(data.train_set)
        evaluated.transform = data.evaluation_transform  # the same image before and after
        return DataLoader(Subset(evaluated, inside), collate_fn=data.collate)
