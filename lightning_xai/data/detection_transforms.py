"""Deformable DETR's augmentation on pictures that stay uint8, with every random number drawn from a named source.

An image is a uint8 tensor (3, h, w), best with channels-last strides as decoders give it; a target is a dict with
`boxes` (N, 4) xyxy in pixels of that image, `labels`, `area` and `iscrowd` (N,), and `size` (2,) = (h, w). A
transform returns a new target and leaves the given one as it was.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Target = dict[str, Any]
Sample = tuple[Tensor, Target]
Resample = Callable[[Tensor, tuple[int, int]], Tensor]
T = TypeVar("T")

SCALES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
# Before a crop the reference limits only the short side; an image 1 pixel wide would become two million pixels long.
LONGEST_BEFORE_CROP = 16384


class Draws:
    """The random numbers of one sample, in the reference's two streams: `random` for choices, torch for crop corners.

    With the same seed they equal what the reference draws after `random.seed(seed)` and `torch.manual_seed(seed)`,
    without touching those global states.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self._random = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self) -> float:
        return self._random.random()

    def choice(self, options: Sequence[T]) -> T:
        return self._random.choice(options)

    def integer(self, low: int, high: int) -> int:
        """Any integer from `low` to `high`, both included."""
        return self._random.randint(low, high)

    def crop_corner(self, free_rows: int, free_columns: int) -> tuple[int, int]:
        """Top and left of a crop that leaves so many rows and columns free; nothing is drawn when none is."""
        if free_rows == free_columns == 0:
            return 0, 0
        top = torch.randint(0, free_rows + 1, (1,), generator=self._generator).item()
        left = torch.randint(0, free_columns + 1, (1,), generator=self._generator).item()
        return int(top), int(left)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A 64-bit seed for one sample in one epoch; near numbers give unrelated streams."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0])


def resample_bytes(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Antialiased bilinear resize within uint8; differs from Pillow by at most one grey level in few pixels."""
    # A crop is a view with gaps, for which the fast kernel for channels-last bytes would not be chosen.
    image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return F.resize(image, list(shape), antialias=True)


def resample_as_pillow(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Pillow's bilinear resize, pixel for pixel what the reference trains on; several times slower."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    resized = picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def resized_shape(shape: tuple[int, int], short_side: int, longest: int | None = None) -> tuple[int, int]:
    """Height and width after a resize of the short side, or of the long side to `longest` where it would exceed it."""
    short, long = min(shape), max(shape)
    if longest is not None and long / short * short_side > longest:
        short_side = round(longest * short / long)
    # A sliver whose short side would vanish keeps one pixel of it.
    short_side, scaled = (short_side, int(short_side * long / short)) if short_side else (1, longest)
    return (short_side, scaled) if shape[0] <= shape[1] else (scaled, short_side)


def horizontal_flip(image: Tensor, target: Target) -> Sample:
    """Mirror left and right."""
    width = image.shape[-1]
    boxes = target["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1.0, -1.0, 1.0])
    return F.horizontal_flip(image), {**target, "boxes": boxes + torch.tensor([width, 0.0, width, 0.0])}


def crop(image: Tensor, target: Target, region: tuple[int, int, int, int]) -> Sample:
    """Cut out (top, left, height, width); boxes are clipped, empty ones dropped, areas become the boxes' own."""
    top, left, height, width = region
    image = image[:, top : top + height, left : left + width]
    boxes = target["boxes"] - torch.tensor([left, top, left, top], dtype=torch.float32)
    boxes = torch.minimum(boxes.reshape(-1, 2, 2), torch.tensor([width, height], dtype=torch.float32)).clamp(min=0)
    sides = boxes[:, 1] - boxes[:, 0]
    kept = (sides > 0).all(dim=1)
    return image, {
        **target,
        "boxes": boxes.flatten(1)[kept],
        "labels": target["labels"][kept],
        "area": sides.prod(dim=1)[kept],
        "iscrowd": target["iscrowd"][kept],
        "size": torch.tensor([height, width]),
    }


def resize(image: Tensor, target: Target, shape: tuple[int, int], resample: Resample = resample_bytes) -> Sample:
    """Scale to (height, width), boxes and areas with it."""
    _, height, width = image.shape
    image = resample(image, shape)
    y, x = shape[0] / height, shape[1] / width
    return image, {
        **target,
        "boxes": target["boxes"] * torch.tensor([x, y, x, y]),
        "area": target["area"] * (x * y),
        "size": torch.tensor(shape),
    }


class TrainingTransform:
    """Flip; then resize, or (with `crop_probability`) resize, crop at random and resize again.

    The short side becomes one of `scales`, the long side at most `max_size`. A crop is cut from the picture with a
    short side out of `crop_scales`; its height and width are uniform between the two numbers of `crop_range`, or up
    to the picture's own size where that is smaller. Source: Deformable DETR, `make_coco_transforms("train")`.
    """

    def __init__(
        self,
        scales: Sequence[int] = SCALES,
        max_size: int | None = 1333,
        crop_scales: Sequence[int] = (400, 500, 600),
        crop_range: tuple[int, int] = (384, 600),
        flip_probability: float = 0.5,
        crop_probability: float = 0.5,
        resample: Resample = resample_bytes,
    ):
        if not scales or min(scales) < 1:
            raise ValueError(f"scales={list(scales)} should be one or more positive short sides in pixels.")
        if crop_probability > 0 and (
            not crop_scales or min(crop_scales) < 1 or not 1 <= crop_range[0] <= crop_range[1]
        ):
            raise ValueError(
                f"crop_scales={list(crop_scales)} and crop_range={list(crop_range)} should be positive short sides and "
                "a smallest and largest crop side in pixels; crop_probability=0 switches crops off."
            )
        self.scales = scales
        self.max_size = max_size
        self.crop_scales = crop_scales
        self.crop_range = crop_range
        self.flip_probability = flip_probability
        self.crop_probability = crop_probability
        self.resample = resample

    def __call__(self, image: Tensor, target: Target, draws: Draws) -> Sample:
        if draws.uniform() < self.flip_probability:
            image, target = horizontal_flip(image, target)
        if draws.uniform() >= 1 - self.crop_probability:
            image, target = self._resize(image, target, draws.choice(self.crop_scales), LONGEST_BEFORE_CROP)
            image, target = self._random_crop(image, target, draws)
        return self._resize(image, target, draws.choice(self.scales), self.max_size)

    def _resize(self, image: Tensor, target: Target, short_side: int, longest: int | None) -> Sample:
        shape = resized_shape((image.shape[1], image.shape[2]), short_side, longest)
        return resize(image, target, shape, self.resample)

    def _random_crop(self, image: Tensor, target: Target, draws: Draws) -> Sample:
        _, image_height, image_width = image.shape
        smallest, largest = self.crop_range
        width = draws.integer(min(smallest, image_width), min(largest, image_width))
        height = draws.integer(min(smallest, image_height), min(largest, image_height))
        top, left = draws.crop_corner(image_height - height, image_width - width)
        return crop(image, target, (top, left, height, width))


class EvaluationTransform:
    """Resize the short side to `size`, the long side to at most `max_size`; a training's draws are not used."""

    def __init__(self, size: int = 800, max_size: int | None = 1333, resample: Resample = resample_bytes):
        if size < 1:
            raise ValueError(f"size={size} should be a positive short side in pixels.")
        self.size = size
        self.max_size = max_size
        self.resample = resample

    def seen(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Which part of a picture of this size is in the result, xyxy in its pixels: all of it."""
        return 0.0, 0.0, float(width), float(height)

    def __call__(self, image: Tensor, target: Target, draws: Draws | None = None) -> Sample:
        shape = resized_shape((image.shape[1], image.shape[2]), self.size, self.max_size)
        return resize(image, target, shape, self.resample)
