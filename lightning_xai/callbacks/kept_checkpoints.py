"""Checkpoints that stay: some epochs of a long run are worth going back to."""

from pathlib import Path

import pytorch_lightning as pl


def keeps_checkpoint(epoch: int, lr_drop: int | None, every: int = 5) -> bool:
    """Whether the checkpoint of this epoch (from 0) is kept for good: before each drop and every few epochs."""
    return (epoch + 1) % every == 0 or (lr_drop is not None and (epoch + 1) % lr_drop == 0)


class KeptCheckpoints(pl.Callback):
    """Keep `<run folder>/checkpoints/epoch_NNNN.ckpt` every few epochs and before each drop of the learning rate.

    The module's `lr_drop`, where it has one, says how many epochs lie between drops. Source: the original Deformable
    DETR's `checkpointNNNN.pth`.
    """

    def __init__(self, every: int = 5) -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1 epoch; leave the callback out to keep no checkpoint")
        self.every = every

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if keeps_checkpoint(trainer.current_epoch, getattr(pl_module, "lr_drop", None), self.every):
            folder = Path(trainer.default_root_dir) / "checkpoints"
            trainer.save_checkpoint(folder / f"epoch_{trainer.current_epoch:04d}.ckpt")
