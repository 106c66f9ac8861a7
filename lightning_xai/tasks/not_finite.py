"""Training stops on every process alike as soon as a loss is not finite."""

from collections.abc import Callable, Sequence

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor


def stop_unless_finite(
    module: pl.LightningModule, total: Tensor, ids: Sequence[int], what: Callable[[], str], batch: int
) -> None:
    """Raise FloatingPointError on every process where the loss `total` is not finite on any; a collective call.

    ids: of this process's images. what: says which losses are not finite, asked where `total` is not. batch: its index
    in the epoch.
    """
    bad = ~total.detach().isfinite()
    many = module.trainer.world_size > 1
    if many:
        bad = bad.to(torch.int32)
        dist.all_reduce(bad, dist.ReduceOp.MAX)
    if not bad.item():
        return
    said = None if total.isfinite() else f"process {module.global_rank}, image ids {list(ids)}: {what()}"
    everyone = [said]
    if many:
        everyone = [None] * module.trainer.world_size
        dist.all_gather_object(everyone, said)
    reports = "; ".join(text for text in everyone if text)
    raise FloatingPointError(
        f"the training loss is not finite in epoch {module.current_epoch}, batch {batch}, "
        f"step {module.global_step}: {reports}. The checkpoints so far are good; a lower learning rate, "
        "clipped gradients or bf16 instead of fp16 usually cure it"
    )
