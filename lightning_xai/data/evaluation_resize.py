"""How a picture of any size becomes the square that a classifier is evaluated on: cropped, or squashed.

A sample is an image, uint8 (3, h, w), and a target, a dict whose `object_mask`, int8 (h, w), is carried along where it
is there. Both ways resize as Pillow does, pixel for pixel what the published numbers were measured on.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_xai.data.detection_transforms import Draws

Target = dict[str, Any]
Sample = tuple[Tensor, Target]

LONGEST = 64  # short sides: what is farther from the middle of a sliver is cut before it is enlarged, not after


def resize_image(image: Tensor, shape: tuple[int, int], resample: Image.Resampling) -> Tensor:
    """An image (3, h, w) uint8 in another size, by one of Pillow's filters; channels-last strides."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return torch.from_numpy(np.array(picture.resize((shape[1], shape[0]), resample))).permute(2, 0, 1)


def resize_mask(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """A mask (h, w) int8 in another size: each pixel takes the value at its centre."""
    picture = Image.fromarray(mask.contiguous().view(torch.uint8).numpy())
    resized = np.array(picture.resize((shape[1], shape[0]), Image.Resampling.NEAREST))
    return torch.from_numpy(resized).view(torch.int8)


def centre_crop(plane: Tensor, height: int, width: int) -> Tensor:
    """The middle of (..., h, w), at most `height` x `width` of it."""
    height, width = min(height, plane.shape[-2]), min(width, plane.shape[-1])
    top, left = round((plane.shape[-2] - height) / 2), round((plane.shape[-1] - width) / 2)
    return plane[..., top : top + height, left : left + width]


class CropResize:
    """The short side becomes `size` / `share` pixels, bicubic; the square of `size` in the middle stays.

    share: by default 0.875 up to 224 pixels and 1 above, as MAE evaluates. Source: MAE, `build_transform(False)`.
    """

    def __init__(self, size: int = 224, share: float | None = None):
        if size < 1:
            raise ValueError(f"size={size} should be a positive side in pixels.")
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"share={share} should be the part of the short side that is kept, above 0 and up to 1.")
        self.size = size
        self.short_side = int(size / (share or (0.875 if size <= 224 else 1.0)))

    def _shapes(self, picture: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of a picture (h, w): what is resized of it, and to what."""
        short = min(picture)
        whole = min(picture[0], LONGEST * short), min(picture[1], LONGEST * short)
        height, width = (int(self.short_side * side / short) if side != short else self.short_side for side in whole)
        return whole, (height, width)

    def seen(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Which part of a picture of this size is in the result, xyxy in its pixels."""
        whole, shape = self._shapes((height, width))
        box = []
        for side, kept, resized in zip((width, height), whole[::-1], shape[::-1], strict=True):
            before, size = round((side - kept) / 2), min(self.size, resized)
            start = round((resized - size) / 2)
            box.append([before + place * kept / resized for place in (start, start + size)])
        return box[0][0], box[1][0], box[0][1], box[1][1]

    def __call__(self, image: Tensor, target: Target, draws: Draws | None = None) -> Sample:
        (height, width), shape = self._shapes(tuple(image.shape[1:]))
        image = resize_image(centre_crop(image, height, width), shape, Image.Resampling.BICUBIC)
        target = {**target, "size": torch.tensor([self.size, self.size])}
        if "object_mask" in target:
            mask = resize_mask(centre_crop(target["object_mask"], height, width), shape)
            target["object_mask"] = centre_crop(mask, self.size, self.size)
        return centre_crop(image, self.size, self.size), target


class SquashResize:
    """The whole picture on `size` x `size` pixels, bilinear, whatever its aspect: no relevant pixel is cut off.

    Source: Chefer et al., the perturbation and segmentation tests of Transformer-Explainability.
    """

    def __init__(self, size: int = 224):
        if size < 1:
            raise ValueError(f"size={size} should be a positive side in pixels.")
        self.size = size

    def seen(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Which part of a picture of this size is in the result, xyxy in its pixels: all of it."""
        return 0.0, 0.0, float(width), float(height)

    def __call__(self, image: Tensor, target: Target, draws: Draws | None = None) -> Sample:
        shape = (self.size, self.size)
        target = {**target, "size": torch.tensor(shape)}
        if "object_mask" in target:
            target["object_mask"] = resize_mask(target["object_mask"], shape)
        return resize_image(image, shape, Image.Resampling.BILINEAR), target
