"""Classification samples of one size become one batch of bytes."""

from typing import Any

import torch
from torch import Tensor


def collate_classification(samples: list[tuple[Tensor, dict[str, Any]]]) -> dict[str, Tensor]:
    """Stack pairs (image uint8 (3, h, w), target with `label` and `index`).

    The batch is a dict: `images` uint8 (B, 3, h, w) in channels-last memory, `labels` and `index` int64 (B,), and
    where every target has them `object_masks` int8 (B, h, w) of its `object_mask` and `erased` bool (B, h, w) of
    the pixels that random erasing replaces. Raises: ValueError for images of several sizes.
    """
    images = [image for image, _ in samples]
    shapes = sorted({tuple(image.shape[1:]) for image in images})
    if len(shapes) > 1:
        raise ValueError(
            f"a batch holds images of {shapes[0]} and {shapes[1]} pixels: the transform must give one size"
        )
    height, width = shapes[0]
    # Allocated as (B, h, w, 3) because decoded and resized pictures lie in memory that way: rows are copied whole.
    batch = torch.empty(len(images), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for place, image in zip(batch, images, strict=True):
        place.copy_(image)
    targets = [target for _, target in samples]
    collated = {"images": batch} | {
        name: torch.tensor([int(target[key]) for target in targets])
        for name, key in (("labels", "label"), ("index", "index"))
    }
    for name, key in (("object_masks", "object_mask"), ("erased", "erased")):
        if all(key in target for target in targets):
            collated[name] = torch.stack([target[key] for target in targets])
    return collated
