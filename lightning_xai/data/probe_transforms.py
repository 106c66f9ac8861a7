"""The augmentation that MAE's linear probe is trained with: a crop drawn once, and mirroring."""

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lightning_xai.data.detection_transforms import Draws
from lightning_xai.data.evaluation_resize import resize_image

Target = dict[str, Any]
Sample = tuple[Tensor, Target]


class ProbeAugmentation:
    """A random crop, resized to size x size (bicubic), mirrored with probability `flip`.

    The crop's area is a share of the image's, uniform in `scale`, its aspect ratio (w / h) log-uniform in `ratio`; a
    side longer than the image's is cut to it. torchvision's crop draws again in that case, so that it prefers the
    middle; this one is drawn once, as Inception's. An `object_mask` is left out: training does not read it.
    Source: MAE, `util/crop.py`.
    """

    def __init__(
        self,
        size: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ):
        if size < 1:
            raise ValueError(f"size={size} should be a positive side in pixels.")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(
                f"scale={tuple(scale)} should be two shares of the area in rising order, above 0, up to 1."
            )
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio={tuple(ratio)} should be two aspect ratios in rising order, above 0.")
        self.size, self.scale, self.ratio, self.flip = size, tuple(scale), tuple(ratio), flip

    def __call__(self, image: Tensor, target: Target, draws: Draws) -> Sample:
        shape = tuple(image.shape[1:])
        height, width = crop_sides(shape, self.scale, self.ratio, draws)
        top, left = draws.crop_corner(shape[0] - height, shape[1] - width)
        crop = image[:, top : top + height, left : left + width]
        image = resize_image(crop, (self.size, self.size), Image.Resampling.BICUBIC)
        if draws.uniform() < self.flip:
            image = image.flip(2)
        target = {name: value for name, value in target.items() if name != "object_mask"}
        return image, {**target, "size": torch.tensor([self.size, self.size])}


def crop_sides(
    shape: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], draws: Draws
) -> tuple[int, int]:
    """Height and width of a crop of an image of `shape` (h, w): at least 1 pixel, at most the image's."""
    area = shape[0] * shape[1] * (scale[0] + (scale[1] - scale[0]) * draws.uniform())
    low, high = (math.log(limit) for limit in ratio)
    aspect = math.exp(low + (high - low) * draws.uniform())
    height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
    return max(1, min(height, shape[0])), max(1, min(width, shape[1]))
