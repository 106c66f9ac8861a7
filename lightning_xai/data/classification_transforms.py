"""The augmentation that masked autoencoders are fine-tuned with: timm's parts, drawn from a sample's own seed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_xai.data.detection_transforms import Draws

Target = dict[str, Any]
Sample = tuple[Tensor, Target]

IMAGENET_MEAN_COLOUR = (124, 116, 104)  # in bytes, what geometric operations fill with


class FineTuneAugmentation:
    """Random resized crop, mirroring, RandAugment and the choice of pixels to erase.

    size: side of the result. scale, ratio: shares of the area and aspect ratios (w / h) of the crop, resized bicubic.
    flip: probability of mirroring. auto_augment: a policy as timm writes it ("rand-m9-mstd0.5-inc1"), or None;
    color_jitter: strength of brightness, contrast and saturation jitter, without a policy only. erasing: probability of
    random erasing, in `erasing_count` boxes; the target's `erased`, bool (size, size), marks their pixels, which are
    filled after normalising, by the task. An `object_mask` is left out: training does not read it.
    Raises ValueError for a policy that timm does not know. Source: MAE, `build_transform(True)`.
    """

    def __init__(
        self,
        size: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        color_jitter: float | None = None,
        erasing: float = 0.25,
        erasing_count: int = 1,
    ):
        if size < 1:
            raise ValueError(f"size={size} should be a positive side in pixels.")
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale={tuple(scale)} should be two shares of the area in rising order, above 0.")
        self.size, self.scale, self.ratio, self.flip = size, tuple(scale), tuple(ratio), flip
        self.policy = augmentation_policy(auto_augment, size) if auto_augment else None
        self.jitter = None
        if color_jitter and self.policy is not None:
            raise ValueError(f"color_jitter={color_jitter} goes without a policy only: set auto_augment to null too")
        if color_jitter:
            from torchvision.transforms import ColorJitter

            self.jitter = ColorJitter(color_jitter, color_jitter, color_jitter)
        self.erasing = erasing
        self.eraser = box_eraser(erasing, erasing_count)

    def __call__(self, image: Tensor, target: Target, draws: Draws) -> Sample:
        from timm.data.transforms import RandomResizedCropAndInterpolation

        with global_draws_from(draws.seed):
            top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self.scale, self.ratio)
            cut = image[:, top : top + height, left : left + width].permute(1, 2, 0).contiguous().numpy()
            picture = Image.fromarray(cut).resize((self.size, self.size), Image.Resampling.BICUBIC)
            if random.random() < self.flip:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if self.policy is not None:
                picture = self.policy(picture)
            if self.jitter is not None:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(draws.seed)
                    picture = self.jitter(picture)
            target = {name: value for name, value in target.items() if name != "object_mask"}
            target["size"] = torch.tensor([self.size, self.size])
            if self.erasing:
                target["erased"] = self.eraser(torch.ones(1, self.size, self.size))[0] == 0
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1), target


def augmentation_policy(name: str, size: int) -> Any:
    """timm's policy of that name (AutoAugment, RandAugment, AugMix, 3-Augment) for PIL images of `size` pixels.

    Geometric operations resample bicubic and fill with ImageNet's mean colour; translations reach 0.45 * `size`.
    "inc0" means what it says. Raises ValueError for a name that timm cannot read.
    """
    from timm.data import auto_augment

    families = {"rand": auto_augment.rand_augment_transform, "augmix": auto_augment.augment_and_mix_transform}
    build = families.get(name.split("-")[0], auto_augment.auto_augment_transform)
    options = {
        "translate_const": int(size * 0.45),
        "img_mean": IMAGENET_MEAN_COLOUR,
        "interpolation": Image.Resampling.BICUBIC,
    }
    try:
        policy = build(name, options)
    except (AssertionError, ValueError, KeyError) as error:
        raise ValueError(
            f"auto_augment='{name}' is no policy of timm: expected one such as 'rand-m9-mstd0.5-inc1', 'original', "
            f"'augmix-m3-w3' or '3a' ({error})"
        ) from error
    for operation in policy.ops if hasattr(policy, "ops") else chain.from_iterable(policy.policy):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = posterize
    return policy


def posterize(picture: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's operation, also with 0 bits, which its strongest level keeps and Pillow refuses since 13: black."""
    from timm.data import auto_augment

    return auto_augment.posterize(picture, bits, **options) if bits else picture.point(lambda value: 0)


def box_eraser(probability: float, count: int = 1) -> Any:
    """timm's random erasing, here of a plane of ones, so that zeros say which pixels a later fill replaces.

    A box covers 0.02 to 1/3 of the area (shared by `count` boxes) at a log-uniform aspect ratio of 0.3 to 1/0.3.
    """
    from timm.data.random_erasing import RandomErasing

    if not 0 <= probability <= 1 or count < 1:
        raise ValueError(f"erasing={probability} with erasing_count={count}: expected a probability and at least 1 box")
    return RandomErasing(probability, mode="const", max_count=count, device="cpu")


@contextmanager
def global_draws_from(seed: int) -> Iterator[None]:
    """Python's and NumPy's global generators, which timm draws from, seeded inside and afterwards as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
