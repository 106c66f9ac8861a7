"""A classifier of a `fit` configuration: trained into a folder, then asked about folders of images."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from lightning_xai.cli.checkpointed import configured_with_weights
from lightning_xai.cli.classified_images import classified_images
from lightning_xai.cli.training import run as run_training
from lightning_xai.data.debugset_selection import ClassifiedImages
from lightning_xai.data.image_folder import ImageFolder, ImageFolderModule
from lightning_xai.evaluate.relevance_energy import RelevanceEnergy
from lightning_xai.explain.explain_batch import explain_batch, methods_by_name
from lightning_xai.tasks.explanation_test import ExplanationTest

LOG, DONE = "log.txt", "done"


def trained(words: Sequence[str], folder: Path) -> Path:
    """The checkpoint at the end of `lightning-xai fit` with these words, in `folder`; what it says goes to log.txt.

    A training that was interrupted there goes on; one that is done is not repeated.
    """
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if (folder / DONE).is_file() and checkpoint.is_file():
        return checkpoint
    resumed = ["--ckpt_path", str(checkpoint)] if checkpoint.is_file() else []
    with logged(folder / LOG):
        status = run_training("fit", [*words, "--run_dir", str(folder), *resumed])
    if status:
        sys.exit(status)
    (folder / DONE).touch()
    return checkpoint


@contextmanager
def logged(file: Path):
    """What is printed meanwhile is appended to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        yield


def evaluated_images(data: ImageFolderModule, folder: str, masks: bool = False) -> ImageFolder:
    """The images of a folder below the data's root (or absolute), as they are evaluated; masks: with their objects'."""
    shown = None
    if masks:
        shown = [data.root / data.masks / (Path(folder).name if Path(folder).is_absolute() else folder)]
    return ImageFolder([data.root / folder], data.class_names, data.evaluation_transform, masks=shown, **data.reading)


class TrainedClassifier:
    """The classifier of a configuration with the weights of a checkpoint.

    words: as `fit` takes them. cache: folder for features. log: file for what Lightning says meanwhile.
    """

    def __init__(self, words: Sequence[str], checkpoint: Path, cache: Path, log: Path):
        quiet = ["--trainer.callbacks", "[]", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
        self.log, self.cache = log, cache
        with logged(log):
            self.cli = configured_with_weights([*words, *quiet, "--run_dir", str(cache)], checkpoint)
        self.task, self.trainer, self.data = self.cli.model, self.cli.trainer, self.cli.datamodule
        self._described = yaml.safe_dump(self.cli.config.data.as_dict())

    @property
    def class_names(self) -> list[str]:
        return list(self.data.class_names)

    def images(self, folder: str, masks: bool = False) -> ImageFolder:
        """See `evaluated_images`."""
        return evaluated_images(self.data, folder, masks)

    def judged(self, folder: str) -> ClassifiedImages:
        """What the classifier makes of a folder's images, in alphabetical order; kept for the next time."""
        with logged(self.log):
            found = classified_images(
                self.task,
                self.trainer,
                self.images(folder),
                self.cache,
                self._described,
                self.data.eval_batch_size,
                self.data.num_workers,
            )
        return found.in_order()

    def energy(self, folder: str, method: Mapping[str, dict[str, Any] | None]) -> float:
        """Mean share of the true class's positive relevance inside the true object, over the images of a folder."""
        self.data.test, self.data.test_set, self.data.val_set = folder, None, None
        test = ExplanationTest(self.task, RelevanceEnergy("truth"), dict(method))
        with logged(self.log):
            self.trainer.test(test, datamodule=self.data, verbose=False)
        (numbers,) = test.last_table.values()
        return numbers["energy"]

    def maps(
        self, images: ImageFolder, places: Sequence[int], method: Mapping[str, dict[str, Any] | None], size: int = 64
    ) -> tuple[np.ndarray, np.ndarray]:
        """Relevance (n, h, w) of the predicted class on the pixels of images `places`, and that class (n,)."""
        self.task.eval()
        relevance, classes = [], []
        for start in range(0, len(places), size):
            batch = self.data.collate([images[place] for place in places[start : start + size]])
            with torch.no_grad():
                found = explain_batch(self.task, batch, methods_by_name(method))
            (explanation,) = found.by_method.values()
            relevance.append(explanation.on_pixels(tuple(batch["images"].shape[-2:])).float().cpu().numpy())
            classes.append(found.explained.classes.cpu().numpy())
        return np.concatenate(relevance), np.concatenate(classes)
