"""Detection samples of different sizes become one batch of bytes."""

from typing import Any

import torch
from torch import Tensor


def collate_detection(samples: list[tuple[Tensor, dict[str, Any]]], pad_to_multiple: int | None = None) -> dict:
    """Pad images at the bottom and right to the largest height and width among them.

    `samples` are pairs (image uint8 (3, h, w), target). The batch is a dict: `images` uint8 (B, 3, H, W) in
    channels-last memory and zero on padding, `mask` bool (B, H, W) that is True on padding, `targets` the list of
    the B targets. Pictures stay bytes, a quarter of the floats' memory to copy, pin and send; whoever has them on
    the device normalises them there. With `pad_to_multiple`, H and W are rounded up to a multiple of it.
    """
    images = [image for image, _ in samples]
    height, width = max(image.shape[1] for image in images), max(image.shape[2] for image in images)
    if pad_to_multiple is not None:
        height, width = (-(-size // pad_to_multiple) * pad_to_multiple for size in (height, width))
    # Allocated as (B, H, W, 3) because decoded and resized pictures lie in memory that way: rows are copied whole.
    batch = torch.zeros(len(images), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        _, h, w = image.shape
        batch[i, :, :h, :w] = image
        mask[i, :h, :w] = False
    return {"images": batch, "mask": mask, "targets": [target for _, target in samples]}
