"""Reconstructions during validation: the same images every time, and no trace in the training."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_xai.callbacks import reconstructions
from lightning_xai.callbacks.reconstructions import Reconstructions

pytestmark = pytest.mark.filterwarnings("ignore")


class Painter(pl.LightningModule):
    """The duck type of a pre-training task, with dropout, so that a disturbed random state would be seen."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.5))
        self.seen = []

    def training_step(self, batch, batch_idx):
        return self.layer(batch["images"].float() / 255).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def reconstruction(self, batch):
        modes = (self.layer.training, torch.is_grad_enabled())
        self.seen.append((batch["index"].tolist(), batch["images"].clone(), modes))
        painted = (self.layer(batch["images"].float()).clamp(0, 255)).to(torch.uint8)
        torch.rand(3)
        images = batch["images"]
        return SimpleNamespace(
            original=images,
            visible=images // 2,
            painted=painted,
            pasted=painted,
            losses=torch.arange(float(len(images))),
            hidden=0.75,
            scaled=True,
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def batches(*groups):
    def picture(index):
        return torch.full((3, 8, 8), index, dtype=torch.uint8)

    made = [{"images": torch.stack([picture(i) for i in group]), "index": torch.tensor(group)} for group in groups]
    return DataLoader(made, batch_size=None)


def fit(folder, task, callbacks, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        default_root_dir=folder, accelerator="cpu", callbacks=callbacks, enable_model_summary=False, **quiet, **options
    )
    trainer.fit(task, batches([1, 2], [3, 4]), batches([9, 4], [6, 2]))
    return trainer


def test_same_images_every_time_in_the_chosen_epochs(tmp_path):
    task = Painter()
    fit(tmp_path, task, [Reconstructions(samples=3, every_n_epochs=2)], max_epochs=5, num_sanity_val_steps=1)
    files = sorted(file.name for file in (tmp_path / "pictures" / "reconstructions").iterdir())
    assert files == [f"step_{2 * epoch:08d}.png" for epoch in (2, 4, 5)]  # every second epoch and the last
    for indices, images, modes in task.seen:
        assert indices == [2, 4, 9]  # of 2, 4, 6 and 9 those with the smallest hash
        assert images[:, 0, 0, 0].tolist() == indices
        assert modes == (False, False)


def test_neighbours_are_not_chosen_together(tmp_path):
    """Of 30 pictures in folders of 10 a class, three are of three classes, whatever batches they come in."""
    chosen = []
    for size in (30, 7):
        task, groups = Painter(), [list(range(30))[start : start + size] for start in range(0, 30, size)]
        trainer = pl.Trainer(
            default_root_dir=tmp_path / str(size), accelerator="cpu", callbacks=[Reconstructions(samples=3)],
            logger=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.validate(task, batches(*groups), verbose=False)
        chosen.append(task.seen[0][0])
    assert chosen[0] == chosen[1] and {index // 10 for index in chosen[0]} == {0, 1, 2}


def test_training_is_the_same_with_and_without(tmp_path):
    ends = []
    for callbacks in ([], [Reconstructions()]):
        pl.seed_everything(1, verbose=False)
        task = Painter()
        fit(tmp_path, task, callbacks, max_epochs=3)
        assert task.layer.training
        ends.append([parameter.detach().clone() for parameter in task.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_the_picture_goes_where_pictures_go(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(reconstructions, "log_picture", lambda trainer, name, picture, step: given.append((name, step)))
    fit(tmp_path, Painter(), [Reconstructions()], max_epochs=1)
    assert given == [("reconstructions", 2)]


def test_a_task_that_paints_nothing(tmp_path):
    task = Painter()
    task.reconstruction = None
    with pytest.raises(TypeError, match=r"Painter has no reconstruction\(batch\)"):
        fit(tmp_path, task, [Reconstructions()], max_epochs=1)


@pytest.mark.parametrize("options", [{"samples": 0}, {"every_n_epochs": 0}])
def test_arguments_that_cannot_be(options):
    with pytest.raises(ValueError, match="each is at least 1"):
        Reconstructions(**options)
