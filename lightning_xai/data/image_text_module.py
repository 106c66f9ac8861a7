"""Pairs of a picture and a text as batches: what every data module of such pairs shares."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_xai.data.evaluation_resize import CropResize
from lightning_xai.data.split_loaders import SplitLoaders

Pair = tuple[Tensor, dict[str, Any]]


def collate_pairs(samples: Sequence[Pair]) -> dict[str, Any]:
    """Samples (image uint8 (3, h, w), {"text", "index"}) as images (B, 3, h, w), texts, a tuple, and index (B,)."""
    images, targets = zip(*samples, strict=True)
    return {
        "images": torch.stack(images),
        "texts": tuple(target["text"] for target in targets),
        "index": torch.tensor([int(target["index"]) for target in targets]),
    }


class ImageTextModule(SplitLoaders):
    """Loaders over data sets of pairs, which a subclass makes: see `dataset`.

    image_size: side in pixels of the images that the network gets: short side resized (bicubic), centre cropped.
    The other arguments: see `SplitLoaders`.
    """

    reads_text = True

    def __init__(
        self,
        image_size: int = 224,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        prefetch_factor: int = 2,
        seed: int = 0,
    ):
        super().__init__(batch_size, eval_batch_size, num_workers, prefetch_factor, seed)
        self.evaluation_transform = CropResize(image_size, share=1.0)

    collate = staticmethod(collate_pairs)

    def picture_batch(self, picture: Tensor, texts: Sequence[str]) -> dict[str, Any]:
        """One picture, uint8 (3, h, w), with each of the texts: as many pairs of an evaluation batch."""
        image, _ = self.evaluation_transform(picture, {})
        return self.collate([(image, {"text": text, "index": place}) for place, text in enumerate(texts)])
