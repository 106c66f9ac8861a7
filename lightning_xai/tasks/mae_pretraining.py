"""Pre-training a masked autoencoder: the loss on hidden patches, the recipe, and pictures of what it paints."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_xai.evaluate.image_scores import ImageScores
from lightning_xai.nets.mae import MaskedAutoencoder, kept_patches, patchify, unpatchify
from lightning_xai.nets.mae_checkpoints import load_mae_checkpoint
from lightning_xai.tasks.layer_decay import weight_decay_groups
from lightning_xai.tasks.mae_recipe import MAERecipe


def pixel_targets(images: Tensor, patch_size: int, normalise: bool) -> Tensor:
    """What each patch should be painted as: (B, P, 3 p^2), from images (B, 3, h, w).

    normalise: t' = (t - mean) / sqrt(var + 1e-6) over a patch's own numbers, var with n - 1.
    """
    targets = patchify(images, patch_size)
    if normalise:
        mean, std = patch_statistics(targets)
        targets = (targets - mean) / std
    return targets


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(var + 1e-6) of each patch (B, P, 3 p^2): two of (B, P, 1)."""
    var, mean = torch.var_mean(patches, -1, keepdim=True)
    return mean, (var + 1e-6).sqrt()


def masked_pixel_loss(pred: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """sum(mask * mean_pixels (pred - target)^2) / sum(mask): patches (B, P, 3 p^2), mask (B, P), 1 where hidden."""
    return ((pred - targets).square().mean(-1) * mask).sum() / mask.sum()


def pasted_images(
    images: Tensor, painted: Tensor, mask: Tensor, patch_size: int, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The visible part x (1 - m) of images (B, 3, h, w), and with the hidden part painted, x (1 - m) + y m."""
    hidden = mask.unflatten(1, grid)[:, None]
    hidden = hidden.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    visible = images * (1 - hidden)
    return visible, visible + painted * hidden


def image_losses(pred: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """`masked_pixel_loss` of each image (B,)."""
    return ((pred - targets).square().mean(-1) * mask).sum(1) / mask.sum(1)


def patch_noise(index: Tensor, patches: int) -> Tensor:
    """Uniform noise (B, patches) that follows from the images' indices (B,) alone."""
    return torch.stack([torch.rand(patches, generator=torch.Generator().manual_seed(i)) for i in index.tolist()])


@dataclass(frozen=True)
class Reconstruction:
    """Pictures uint8 (B, 3, h, w) of what the network was given and made of it, and its loss (B,) on each image.

    original; visible: hidden patches in the mean colour; painted: all patches by the network; pasted: the hidden ones
    by the network, the visible ones as they are. hidden: the share of hidden patches. scaled: the network paints
    normalised patches, which the picture shows with the mean and deviation that each has in the original.
    """

    original: Tensor
    visible: Tensor
    painted: Tensor
    pasted: Tensor
    losses: Tensor
    hidden: float
    scaled: bool


class MAEPretraining(MAERecipe):
    """Pre-train a `MaskedAutoencoder` to paint the hidden patches of images.

    mask_ratio: the share of hidden patches. norm_pix_loss: each patch is to be painted with mean 0 and variance 1, as
    in the published models. AdamW with betas 0.9 and 0.95; decay, warm-up and rate as published, see `MAERecipe`.
    checkpoint: a file with weights to start from; encoder_only: its decoder, if it has one, is not read.

    Validation hides the same patches of an image every time: they follow from its index. `last_scores` then holds the
    loss, the mean over images, each counted once, which is the same on any number of processes.
    Source: He et al., CVPR 2022, arXiv 2111.06377.
    """

    def __init__(
        self,
        net: MaskedAutoencoder,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
        lr: float | None = None,
        blr: float = 1.5e-4,
        min_lr: float = 0.0,
        warmup_epochs: float = 40.0,
        weight_decay: float = 0.05,
        drop_leftover: bool = True,
        checkpoint: str | None = None,
        encoder_only: bool = False,
    ):
        super().__init__(lr, blr, min_lr, warmup_epochs, drop_leftover)
        if encoder_only and checkpoint is None:
            raise ValueError("encoder_only=True needs a checkpoint whose encoder is to be read")
        kept_patches(net.grid[0] * net.grid[1], mask_ratio)
        self.net = net
        self.mask_ratio, self.norm_pix_loss, self.weight_decay = mask_ratio, norm_pix_loss, weight_decay
        self.last_scores: dict[str, float] | None = None
        self._evaluated = ImageScores()
        if checkpoint is not None:
            load_mae_checkpoint(net, checkpoint, encoder_only)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> dict:
        return self.net(images, self.mask_ratio, noise)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = weight_decay_groups(self.net, self.weight_decay)
        for group in groups:
            del group["names"]
        # under a gradient scaler the one-kernel update would unscale the gradients itself, after they were clipped
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=self.trainer.precision != "16-mixed")

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        (images,) = self.prepare(batch)
        return self.finite(masked_pixel_loss(*self._painted(images)), batch, batch_idx)

    def _painted(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted patches, what they should be, and which were hidden."""
        outputs = self(images, noise)
        return outputs["pred"], pixel_targets(images, self.net.patch_size, self.norm_pix_loss), outputs["mask"]

    def on_validation_epoch_start(self) -> None:
        self._evaluated = ImageScores()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        (images,) = self.prepare(batch)
        noise = patch_noise(batch["index"], self.net.grid[0] * self.net.grid[1]).to(images.device)
        losses = image_losses(*self._painted(images, noise)).double()
        self._evaluated.add(batch["index"].tolist(), {"loss": losses})

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._score("val")

    def on_test_epoch_end(self) -> None:
        self._score("test")

    def _score(self, stage: str) -> None:
        scores = {"loss": self._evaluated.gathered()["loss"].mean().item()}
        if not self.trainer.sanity_checking:
            self.last_scores = scores
        self.log(f"{stage}/loss", scores["loss"], sync_dist=True, reduce_fx="max")

    def epoch_losses(self, stage: str) -> dict[str, float]:
        """The mean loss of the epoch; of an evaluation, that of the last one."""
        return super().epoch_losses(stage) if stage == "train" else dict(self.last_scores or {})

    def reconstruction(self, batch: Mapping[str, Any]) -> Reconstruction:
        """Paint the images of a batch with the patches hidden that validation hides."""
        (images,) = self.prepare(batch)
        size, grid = self.net.patch_size, self.net.grid
        pred, targets, mask = self._painted(images, patch_noise(batch["index"], grid[0] * grid[1]).to(images.device))
        losses = image_losses(pred, targets, mask)
        if self.norm_pix_loss:
            mean, deviation = patch_statistics(patchify(images, size))
            pred = pred * deviation + mean
        painted = unpatchify(pred.to(images.dtype), size, grid)
        visible, pasted = pasted_images(images, painted, mask, size, grid)
        pictures = (self._as_bytes(pixels) for pixels in (visible, painted, pasted))
        return Reconstruction(batch["images"], *pictures, losses, mask.mean().item(), scaled=self.norm_pix_loss)

    def _as_bytes(self, images: Tensor) -> Tensor:
        return (images * self.pixel_std + self.pixel_mean).round().clamp(0, 255).to(torch.uint8)
