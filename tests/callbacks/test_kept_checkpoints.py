"""Checkpoints of chosen epochs stay."""

import pytest
import pytorch_lightning as pl
import torch

from lightning_xai.callbacks.kept_checkpoints import KeptCheckpoints, keeps_checkpoint


def test_before_drops_and_every_fifth_epoch():
    assert [epoch for epoch in range(15) if keeps_checkpoint(epoch, lr_drop=7)] == [4, 6, 9, 13, 14]
    assert [epoch for epoch in range(15) if keeps_checkpoint(epoch, None)] == [4, 9, 14]


class Nothing(pl.LightningModule):
    lr_drop = 3

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_files_stay(tmp_path):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    callback = KeptCheckpoints(every=2)
    trainer = pl.Trainer(
        max_epochs=4, accelerator="cpu", default_root_dir=tmp_path, callbacks=[callback], log_every_n_steps=1, **quiet
    )
    trainer.fit(Nothing(), torch.utils.data.DataLoader([0.0]))
    kept = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert kept == ["epoch_0001.ckpt", "epoch_0002.ckpt", "epoch_0003.ckpt"]
    assert torch.load(tmp_path / "checkpoints" / kept[1], weights_only=True)["epoch"] == 2


def test_every_is_positive():
    with pytest.raises(ValueError, match="every=0"):
        KeptCheckpoints(every=0)
