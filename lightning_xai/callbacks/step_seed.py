"""Random numbers of a training step that depend on nothing but the step."""

import pytorch_lightning as pl
import torch


class StepSeed(pl.Callback):
    """Seed torch's generators before each training batch from (seed, epoch, batch, process).

    Dropout then draws the same numbers whether a run was interrupted and resumed or not, with no random state in the
    checkpoint, and whatever a callback drew in between.
    """

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        # not Lightning's count of all batches: it counts the batch that a run was interrupted in twice
        counter = ((trainer.current_epoch << 32) + batch_idx) * trainer.world_size + trainer.global_rank
        seed, device = _mix(self.seed, counter), pl_module.device
        # not torch.manual_seed, which formats a stack trace for each kind of device that is not in use
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index].manual_seed(seed)


def _mix(seed: int, counter: int) -> int:
    """A 63-bit hash of both numbers (splitmix64), so that neighbouring steps get unrelated seeds."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + (counter + 1) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1
