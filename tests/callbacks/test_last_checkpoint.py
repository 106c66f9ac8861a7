"""What stops a run decides whether its last checkpoint is written again."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from lightning_xai.callbacks.last_checkpoint import LastCheckpoint


class Stops(pl.LightningModule):
    def __init__(self, step, reason):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.step, self.reason = step, reason

    def training_step(self, batch, batch_idx):
        if self.global_step == self.step:
            raise self.reason
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(
    "reason, saved", [(FloatingPointError("NaN"), 2), (ValueError("bad"), 2), (SIGTERMException(), 3)], ids=str
)
def test_only_a_told_stop_saves(tmp_path, reason, saved):
    last = LastCheckpoint(
        tmp_path, filename="last", every_n_train_steps=2, save_on_exception=True, enable_version_counter=False
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[last], log_every_n_steps=1, **quiet)
    with pytest.raises(type(reason)):
        trainer.fit(Stops(3, reason), torch.utils.data.DataLoader([0.0] * 6))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == saved
