"""Explanations during training: the same targets of the same samples every time."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader, IterableDataset

from lightning_xai.callbacks.explanation_pictures import draw_sample
from lightning_xai.callbacks.pictures import log_picture
from lightning_xai.callbacks.undisturbed import require_whole_network, undisturbed
from lightning_xai.explain.explain_batch import BatchExplanations, explain_batch, methods_by_name
from lightning_xai.explain.explainable import Explained, explainable_task


class ExplanationCallback(pl.Callback):
    """Draw why a task says what it says, in the validation of every n-th epoch and the last, and in a test.

    methods: names, or own names with options, see `methods_by_name`. samples: how many samples, spread evenly over the
    evaluation's data set, or their places in it. targets: which targets, see `Explainable`; with "truth" the label, or
    the `limit` largest annotated objects of a sample, are followed from epoch to epoch: an object that no prediction
    finds has no row. limit: at most so many targets a sample. at_start: draw also before the first step of training.
    name: first part of the pictures' name, so that a run may have several of these callbacks.

    A picture shows input | prediction | one map a method; words are coloured. It goes to every logger and to a file.
    The task must be explainable, see `Explainable`. It is run once or more for each sample, in eval mode, on the first
    process alone; a training is the same with and without. Raises ValueError for a method, an option, a target or a
    sample that there is not, TypeError where the task cannot be explained.
    """

    def __init__(
        self,
        methods: list[str] | dict[str, dict | None],
        samples: int | list[int] = 4,
        targets: str = "truth",
        limit: int | None = 2,
        every_n_epochs: int = 1,
        at_start: bool = False,
        name: str = "explanations",
    ):
        numbers = {"samples": samples, "limit": limit, "every_n_epochs": every_n_epochs}
        wrong = [f"{key}={value}" for key, value in numbers.items() if isinstance(value, int) and value < 1]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} must be at least 1; leave the callback out to draw nothing")
        self.methods = methods_by_name(methods)
        self.samples, self.targets, self.limit = samples, targets, limit
        self.every_n_epochs, self.at_start, self.name = every_n_epochs, at_start, name

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require_whole_network(trainer, self)
        explainable_task(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.at_start and trainer.val_dataloaders is None:
            rank_zero_warn(
                f"at_start=True draws nothing: no validation data is loaded before the first step with "
                f"check_val_every_n_epoch={trainer.check_val_every_n_epoch}; set num_sanity_val_steps=1"
            )
        elif self.at_start:
            self._draw(trainer, pl_module, trainer.val_dataloaders)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        due = trainer.state.fn != "fit" or epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs
        if due and not trainer.sanity_checking:
            self._draw(trainer, pl_module, validation_loaders(trainer))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module, trainer.test_dataloaders)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loaders: Any) -> None:
        if not trainer.is_global_zero:
            return
        task = explainable_task(pl_module)
        with undisturbed(trainer, pl_module):
            for index, batch in sample_batches(loaders, self.samples):
                batch = trainer.strategy.batch_to_device(batch, pl_module.device)
                found = self._explain(task, batch)
                title = f"sample {index}, epoch {trainer.current_epoch}, step {trainer.global_step}"
                picture = draw_sample(task, batch, found, 0, title)
                log_picture(trainer, f"{self.name}/sample_{index}", picture, trainer.global_step)

    def _explain(self, task: Any, batch: Mapping[str, Any]) -> BatchExplanations:
        if self.targets != "truth":
            return explain_batch(task, batch, self.methods, self.targets, self.limit)
        return explain_batch(task, batch, self.methods, "truth", keep=lambda found: self._followed(found, batch))

    def _followed(self, found: Explained, batch: Mapping[str, Any]) -> Explained:
        """Those targets that stand for the largest annotated objects, the largest first."""
        if found.objects is None:
            return found.only(list(range(len(found.targets)))[: self.limit])
        boxes = batch["targets"][0]["boxes"]
        sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        followed = sizes.argsort(descending=True, stable=True)[: self.limit].tolist()
        place = {int(number): i for i, number in enumerate(found.objects)}
        if not any(number in place for number in followed):
            raise LookupError(f"no prediction finds any of the {len(followed)} largest annotated objects")
        return found.only([place[number] for number in followed if number in place])


def validation_loaders(trainer: pl.Trainer) -> Any:
    """The loaders of the validation that runs; a trainer that has fitted names those of its fit in any case."""
    own = trainer.validate_loop._combined_loader if trainer.state.fn == "validate" else None
    return trainer.val_dataloaders if own is None else own.iterables


def sample_batches(loaders: Any, samples: int | Sequence[int]) -> list[tuple[int, Any]]:
    """Samples of the first loader's data set, each with its place in it and as a batch of its own, on the CPU.

    samples: their places, or how many, spread evenly. Raises TypeError where samples cannot be taken by their place,
    ValueError for a place that there is not.
    """
    loader = loaders[0] if isinstance(loaders, Sequence) else loaders
    dataset = getattr(loader, "dataset", None)
    by_place = hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)
    if not isinstance(loader, DataLoader) or not by_place or loader.batch_sampler is None:
        raise TypeError(
            f"{type(loader).__name__} of {type(dataset).__name__}: to follow the same samples, they must be taken by "
            "their place: give a DataLoader that forms batches of a data set with __getitem__ and __len__"
        )
    count = len(dataset)
    if isinstance(samples, int):
        places = sorted(set(torch.linspace(0, count - 1, min(samples, count)).long().tolist()))
    else:
        places = [int(place) for place in samples]
    wrong = [place for place in places if not 0 <= place < count]
    if wrong:
        raise ValueError(f"there is no sample {wrong[0]}; {type(dataset).__name__} has the samples 0 to {count - 1}")
    return [(place, loader.collate_fn([dataset[place]])) for place in places]
