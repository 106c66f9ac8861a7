"""Explanations while a network trains: the same samples and targets, to every logger, and no trace in the training."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_xai.callbacks import explanations
from lightning_xai.callbacks.explanations import ExplanationCallback, sample_batches
from lightning_xai.explain.explainable import Explained
from lightning_xai.explain.targets import Targets

pytestmark = pytest.mark.filterwarnings("ignore")
METHODS = ["generic_relevance", "rollout", "random"]


def steps(folder, name="explanations"):
    """By sample, the steps at which there is a picture."""
    found = {}
    for file in sorted(folder.glob(f"pictures/{name}/*/step_*.png")):
        found.setdefault(file.parent.name, []).append(int(file.stem.removeprefix("step_")))
    return found


def test_the_same_samples_in_every_nth_epoch_the_last_and_before(trainer, classifier, classifier_batches, tmp_path):
    callback = ExplanationCallback(METHODS, samples=3, every_n_epochs=2, at_start=True)
    made = trainer(max_epochs=3, callbacks=[callback], num_sanity_val_steps=1)
    made.fit(classifier(), classifier_batches(), classifier_batches())
    expected = [
        0,
        4,
        6,
    ]  # two steps an epoch: before, after the second, and after the last; nothing of the sanity check
    assert steps(tmp_path) == {"sample_0": expected, "sample_7": expected, "sample_15": expected}
    picture = np.asarray(Image.open(tmp_path / "pictures/explanations/sample_7/step_00000006.png"))
    assert picture.shape[1] > 5 * 320 and picture.std() > 5


def test_under_validate_and_test_with_own_names_options_and_places(trainer, classifier, classifier_batches, tmp_path):
    callback = ExplanationCallback(
        {"ours": {"method": "generic_relevance", "start_layer": 1}}, samples=[5, 2], targets="class:right", name="why"
    )
    task = classifier()
    trainer(callbacks=[callback]).validate(task, classifier_batches(), verbose=False)
    trainer(callbacks=[callback]).test(task, classifier_batches(), verbose=False)
    assert steps(tmp_path, "why") == {"sample_2": [0], "sample_5": [0]}


def test_data_of_another_validation_than_the_fits(trainer, classifier, classifier_batches, tmp_path):
    made, task = trainer(callbacks=[ExplanationCallback(["rollout"], samples=[2])]), classifier()
    made.fit(task, classifier_batches(), classifier_batches())
    loader = classifier_batches()
    few = DataLoader(Subset(loader.dataset, range(2)), collate_fn=loader.collate_fn)
    with pytest.raises(ValueError, match="no sample 2; Subset has the samples 0 to 1"):
        made.validate(task, few, verbose=False)
    assert steps(tmp_path) == {"sample_2": [2]}


def test_that_nothing_is_drawn_at_the_start_is_said(trainer, classifier, classifier_batches, tmp_path):
    callback = ExplanationCallback(["rollout"], samples=1, at_start=True)
    made = trainer(max_epochs=2, callbacks=[callback], num_sanity_val_steps=0, check_val_every_n_epoch=2)
    with pytest.warns(UserWarning, match="at_start=True draws nothing: .* check_val_every_n_epoch=2; set num_sanity"):
        made.fit(classifier(), classifier_batches(), classifier_batches())
    assert steps(tmp_path) == {"sample_0": [4]}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_is_the_same_bit_for_bit_with_and_without(trainer, classifier, classifier_batches, precision):
    """With dropout in training and methods that run rules, draw random numbers and need gradients."""
    methods = [*METHODS, "transformer_attribution"]
    ends = []
    for callbacks in ([], [ExplanationCallback(methods, samples=2, at_start=True)]):
        pl.seed_everything(1, verbose=False)
        task = classifier()
        trainer(max_epochs=2, callbacks=callbacks, precision=precision).fit(
            task, classifier_batches(), classifier_batches()
        )
        assert all(module.training for module in task.net.modules())
        ends.append([parameter.detach().clone() for parameter in task.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_the_largest_annotated_objects_are_followed():
    """Queries 0 and 1 stand for the objects 2 and 0 of three, of which the second is the largest."""
    batch = {"targets": [{"boxes": torch.tensor([[0.0, 0, 9, 9], [0, 0, 30, 30], [0, 0, 5, 5]])}]}
    none = torch.zeros(2, dtype=torch.int64)
    targets = Targets(torch.zeros(2), none, {"query": torch.tensor([0, 1])})
    found = Explained(targets, ("small", "middle"), none, objects=torch.tensor([2, 0]))

    def followed(limit):
        return ExplanationCallback(METHODS, limit=limit)._followed(found, batch).names

    assert followed(3) == ("middle", "small")
    assert followed(2) == ("middle",)
    with pytest.raises(LookupError, match="no prediction finds any of the 1 largest annotated objects"):
        followed(1)


def test_a_sample_without_targets_is_drawn_without_maps(trainer, classifier, classifier_batches, tmp_path):
    class Silent(classifier):
        def explained(self, outputs, batch, choice="predicted", limit=None):
            raise LookupError("nothing stands out")

    trainer(callbacks=[ExplanationCallback(METHODS, samples=1)]).validate(Silent(), classifier_batches(), verbose=False)
    assert steps(tmp_path) == {"sample_0": [0]}


class ImageLogger(CSVLogger):
    """A logger that takes pictures as W&B does."""

    def __init__(self, folder):
        super().__init__(folder)
        self.pictures = []

    def log_image(self, key, images, step):
        self.pictures.append((key, images[0].shape, step))


def test_every_logger_gets_the_pictures(trainer, classifier, classifier_batches, tmp_path):
    loggers = [ImageLogger(tmp_path / "a"), ImageLogger(tmp_path / "b")]
    callback = ExplanationCallback(["rollout"], samples=1)
    trainer(logger=loggers, callbacks=[callback]).fit(classifier(), classifier_batches(), classifier_batches())
    for logger in loggers:
        ((key, shape, step),) = logger.pictures
        assert (key, shape[2], step) == ("explanations/sample_0", 3, 2)


def test_errors(trainer, classifier, classifier_batches):
    with pytest.raises(ValueError, match="no explanation method 'magic'; choose from raw_attention"):
        ExplanationCallback(["magic"])
    with pytest.raises(ValueError, match="samples=0, every_n_epochs=0 must be at least 1"):
        ExplanationCallback(METHODS, samples=0, every_n_epochs=0)
    for targets, said in (("class:wrong", "no class 'wrong'"), ("query:1", "explains predicted, truth, class:NAME")):
        made = trainer(callbacks=[ExplanationCallback(METHODS, targets=targets)])
        with pytest.raises(ValueError, match=said):
            made.validate(classifier(), classifier_batches(), verbose=False)
    bare = pl.LightningModule()
    bare.net = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"LightningModule cannot be explained: it lacks prepare\(...\), explained"):
        ExplanationCallback(METHODS).setup(trainer(), bare, "fit")


def test_samples_must_be_there_and_have_places(classifier_batches):
    with pytest.raises(ValueError, match="no sample 16; Pictures has the samples 0 to 15"):
        sample_batches(classifier_batches(), [0, 16])
    assert [place for place, _ in sample_batches(classifier_batches(), 100)] == list(range(16))

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(TypeError, match="DataLoader of Stream: to follow the same samples"):
        sample_batches(DataLoader(Stream()), 1)


def test_two_processes_write_what_one_writes(in_two_processes, tmp_path):
    """The first process alone draws, and the training goes on."""
    in_two_processes(__file__, tmp_path / "two")
    assert steps(tmp_path / "two" / "0") == {"sample_0": [1], "sample_15": [1]} and not steps(tmp_path / "two" / "1")


def process(folder: Path) -> None:
    from conftest import ClassifierTask, Pictures, collate

    loader = DataLoader(Pictures(), batch_size=8, collate_fn=collate)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    callback = explanations.ExplanationCallback(METHODS, samples=2)
    made = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        default_root_dir=folder,
        enable_model_summary=False,
        callbacks=[callback],
        **options,
    )
    made.fit(ClassifierTask(), loader, loader)


if __name__ == "__main__":
    process(Path(sys.argv[1]) / os.environ["RANK"])
