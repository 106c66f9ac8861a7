"""What fine-tuning, linear probe and pre-training of masked autoencoders share: rates, accumulation, a finite loss."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor

from lightning_xai.tasks.mae_schedule import rate_at, scaled_rate
from lightning_xai.tasks.not_finite import stop_unless_finite

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MAERecipe(pl.LightningModule):
    """A task that is trained by MAE's recipe; a subclass brings network, loss and optimiser.

    The rate is `lr`, or by default `blr` * images of an update / 256, and follows `rate_at` with the trainer's
    max_epochs. It is set at the first of the micro-batches that make an update, from epoch + batch / batches, and
    times `lr_scale` for a parameter group that has one. Accumulation and clipping are the trainer's
    (accumulate_grad_batches, gradient_clip_val). Micro-batches at an epoch's end that do not make a whole update are
    thrown away as in the reference; with `drop_leftover=False` they make a last, smaller one, as Lightning has it
    (its `global_step` counts an update there in either case). On resuming, the rates are those of the flags given
    here. pixel_mean, pixel_std: of the normalisation, of images in [0, 1]; ImageNet's by default.
    ValueError: a number out of its range; a trainer without an end.
    """

    def __init__(
        self,
        lr: float | None = None,
        blr: float = 1e-3,
        min_lr: float = 0.0,
        warmup_epochs: float = 5.0,
        drop_leftover: bool = True,
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
    ):
        super().__init__()
        for name, value in {"lr": lr, "blr": blr, "min_lr": min_lr, "warmup_epochs": warmup_epochs}.items():
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be a finite number of at least 0")
        self.lr, self.blr, self.min_lr, self.warmup_epochs = lr, blr, min_lr, warmup_epochs
        self.drop_leftover = drop_leftover
        self.effective_lr: float | None = lr  # known with the size of a batch
        self._loss_sum: Tensor | None = None
        self._loss_steps = 0
        for name, values, least in (("pixel_mean", pixel_mean, 0), ("pixel_std", pixel_std, 1e-6)):
            if len(values) != 3 or min(values) < least or max(values) > 1:
                raise ValueError(f"{name}={list(values)} must be three numbers of channels whose values are in [0, 1]")
            self.register_buffer(name, 255 * torch.tensor(values)[:, None, None], persistent=False)

    def prepare(self, batch: Mapping[str, Any]) -> tuple[Tensor]:
        """The normalised images (B, 3, h, w) of a batch of bytes."""
        images = batch["images"]
        if images.dtype != torch.uint8:
            raise TypeError(f"batch['images'] is {images.dtype}, but images are uint8 until they are on the device")
        return (images.to(self.pixel_mean.dtype).sub_(self.pixel_mean).div_(self.pixel_std),)

    def on_fit_start(self) -> None:
        # networks are built ready for evaluation, and Lightning leaves the mode of what it trains as it is
        self.net.train()

    def on_train_start(self) -> None:
        if self.trainer.max_epochs in (None, -1) or not math.isfinite(self.trainer.num_training_batches):
            raise ValueError(
                f"the learning rate runs to the last epoch, but there are max_epochs={self.trainer.max_epochs} of "
                f"{self.trainer.num_training_batches} batches: set the trainer's max_epochs, or limit_train_batches"
            )
        if self.warmup_epochs >= self.trainer.max_epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs:g} must be less than the trainer's max_epochs="
                f"{self.trainer.max_epochs}, or the rate never comes down"
            )
        loader = self.trainer.train_dataloader
        sampler = getattr(loader, "batch_sampler", None)
        batch = getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None)
        accumulated, processes = self.trainer.accumulate_grad_batches, self.trainer.world_size
        if batch is None:
            if self.lr is None:
                raise ValueError(f"blr={self.blr:g} needs the loader's batch size, which is not known: set lr instead")
        else:
            images = batch * accumulated * processes
            self.effective_lr = scaled_rate(self.blr, images) if self.lr is None else self.lr
            rule = f" = blr {self.blr:g} x {images} / 256" if self.lr is None else ""
            self.print(
                f"effective batch size {images} = {batch} images x {accumulated} accumulated x {processes} processes, "
                f"lr {self.effective_lr:g}{rule}"
            )
        if self.trainer.num_training_batches < accumulated and self.drop_leftover:
            raise ValueError(
                f"an epoch has {self.trainer.num_training_batches} batches, but accumulate_grad_batches={accumulated} "
                "of them make an update, so none would ever be made: accumulate fewer, or set drop_leftover=False"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx % self.trainer.accumulate_grad_batches:
            return
        epoch = self.current_epoch + batch_idx / self.trainer.num_training_batches
        rate = rate_at(epoch, self.effective_lr, self.min_lr, self.warmup_epochs, self.trainer.max_epochs)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        if self.drop_leftover and (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            optimizer_closure()
            optimizer.zero_grad()
            return
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def finite(self, loss: Tensor, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """The loss, added to the epoch's mean; where it is not finite, FloatingPointError on every process."""
        stop_unless_finite(self, loss, batch["index"].tolist(), lambda: f"loss {loss.item():g}", batch_idx)
        self._loss_sum = loss.detach() + (0.0 if self._loss_sum is None else self._loss_sum.to(loss.device))
        self._loss_steps += 1
        return loss

    def on_train_epoch_start(self) -> None:
        self._loss_sum, self._loss_steps = None, 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        total = None if self._loss_sum is None else self._loss_sum.item()
        checkpoint["train_loss_so_far"] = (total, self._loss_steps)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # a run that goes on in mid-epoch goes on with that epoch's mean; a new epoch begins anew
        total, self._loss_steps = checkpoint.get("train_loss_so_far", (None, 0))
        self._loss_sum = None if total is None else torch.tensor(total, device=self.device)

    def epoch_losses(self, stage: str) -> dict[str, float]:
        """The mean loss of this epoch's micro-batches over all processes; a collective call. Empty without batches."""
        if stage != "train":
            return {}
        own = torch.zeros(2, dtype=torch.float64, device=self.device)
        if self._loss_sum is not None:
            own += torch.stack([self._loss_sum.double(), own.new_tensor(self._loss_steps)])
        if self.trainer.world_size > 1:
            dist.all_reduce(own)
        total, steps = own.tolist()
        return {"loss": total / steps} if steps else {}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % (self.trainer.log_every_n_steps or batch_idx + 2) == 0 and self._loss_steps:
            mean = self._loss_sum.item() / self._loss_steps
            self.log("loss", mean, prog_bar=True, logger=False)
            rate = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
            for logger in self.loggers:
                logger.log_metrics({"train/loss": mean, "train/lr": rate}, step=self.global_step)
