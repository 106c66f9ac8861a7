"""What masked autoencoders are fine-tuned on: RandAugment, erasing and mixing, and the resize of their evaluation."""

import random
from collections.abc import Iterable
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from reference_arrays import tolerate
from torch import Tensor

from checks import check
from lightning_xai.data.classification_transforms import augmentation_policy, box_eraser, global_draws_from
from lightning_xai.data.evaluation_resize import CropResize
from lightning_xai.tasks.mae_recipe import IMAGENET_MEAN, IMAGENET_STD
from lightning_xai.tasks.mixing import Mixing

NO_ARGUMENT = -999


def tolerate_absolute(case) -> None:
    tolerate(case, lambda name: (case.info["tolerance"]["abs"], 0.0))


@check("sa3/mae_eval_transform")
def eval_transform(case):
    tolerate_absolute(case)
    for i, (height, width, size) in enumerate(case.config["items [height, width, input_size]"]):
        image = case.inputs[f"image_{i}"].to(torch.uint8)
        assert image.shape == (height, width, 3)
        cropped, _ = CropResize(size)(image.permute(2, 0, 1), {})
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        case.compare(f"tensor_{i}", (cropped / 255 - mean) / std)


@check("sa3/mae_randaugment_levels")
def randaugment_levels(case):
    tolerate_absolute(case)
    config = case.config
    name = "rand-m{magnitude}-n{num_layers}-p{op_probability}-mstd{magnitude_std}-inc".format(**config)
    policy = augmentation_policy(name + str(int("PosterizeIncreasing" in config["ops"])), 224)
    options = {
        "ops": [op.name for op in policy.ops],
        "num_layers": policy.num_layers,
        "op_probability": policy.ops[0].prob,
        "magnitude": policy.ops[0].magnitude,
        "magnitude_std": policy.ops[0].magnitude_std,
        "fill": list(policy.ops[0].kwargs["fillcolor"]),
        "resample": Image.Resampling(policy.ops[0].kwargs["resample"]).name.lower(),
    }
    for name, value in options.items():
        if value != config[name]:
            case.failures.append(f"{name} is {value}, expected {config[name]}")
    low, high = config["clip"]
    signs = {"arg_plus": seed_where(lambda draw: draw <= 0.5), "arg_minus": seed_where(lambda draw: draw > 0.5)}
    for name, seed in signs.items():
        rows = []
        for op in policy.ops:
            row = []
            for magnitude in case.inputs["magnitudes"].tolist():
                with global_draws_from(seed):
                    magnitude = min(max(magnitude, low), high)
                    row.append(op.level_fn(magnitude, op.hparams)[0] if op.level_fn else NO_ARGUMENT)
            rows.append(row)
        case.compare(name, torch.tensor(rows, dtype=torch.float64))


def seed_where(holds) -> int:
    """A seed whose first draw fulfils a condition."""
    return next(seed for seed in range(1000) if holds(random.Random(seed).random()))


@check("sa3/mae_random_erasing")
def random_erasing(case):
    tolerate_absolute(case)
    images = case.inputs["image"]
    eraser = box_eraser(case.config["probability"], case.config["max_count"])
    with global_draws_from(case.config["random.seed"]):
        erased = torch.stack([eraser(torch.ones(1, *image.shape[1:]))[0] == 0 for image in images])
    case.compare("erased_const", images.masked_fill(erased[:, None], 0.0))
    case.compare("boxes", torch.stack([extent(plane) for plane in erased]))


def extent(plane: Tensor) -> Tensor:
    """Top, bottom, left and right of where a plane (h, w) is True, ends excluded; -1 where it nowhere is."""
    if not plane.any():
        return torch.full((4,), -1)
    rows, columns = (plane.any(axis).nonzero().flatten() for axis in (1, 0))
    return torch.stack([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1])


class GivenDraws:
    """Stands in for NumPy's generator: hands out given numbers in their order, by the name of the function."""

    def __init__(self, rand: Iterable = (), beta: Iterable = (), randint: Iterable = ()):
        self.queues = {"rand": iter(rand), "beta": iter(beta), "randint": iter(randint)}

    def take(self, name: str):
        return lambda *args, **kwargs: next(self.queues[name])

    def __enter__(self) -> None:
        self.patches = [patch.object(np.random, name, self.take(name)) for name in self.queues]
        for each in self.patches:
            each.start()

    def __exit__(self, *error) -> None:
        for each in self.patches:
            each.stop()


@check("sa3/mae_mixup")
def mixup(case):
    tolerate_absolute(case)
    given, config = case.inputs, case.config
    images, labels, logits = given["image"], given["label"], given["logits"]
    cutmix, mixup = 0.0, 1.0  # draws below and above switch_prob
    half = len(images) // 2
    arrays = {
        name: given[f"elem_{name}"].numpy() for name in ("switch", "lam_cutmix", "lam_mixup", "center_y", "center_x")
    }
    centres = [c for pair in zip(arrays["center_y"], arrays["center_x"], strict=True) for c in pair]
    draws = {
        "mixup_batch": ("batch", [0.0, mixup], [float(given["lam_mixup"])], []),
        "cutmix_batch": (
            "batch",
            [0.0, cutmix],
            [float(given["lam_cutmix"])],
            [int(given["center_y"]), int(given["center_x"])],
        ),
        "elem": ("elem", [arrays["switch"], np.zeros(2 * half)], [arrays["lam_cutmix"], arrays["lam_mixup"]], centres),
        "pair": (
            "pair",
            [arrays["switch"][:half], np.zeros(half)],
            [arrays["lam_cutmix"][:half], arrays["lam_mixup"][:half]],
            centres,
        ),
    }
    for name, (mode, rand, beta, randint) in draws.items():
        mixing = Mixing(
            config["num_classes"],
            config["mixup_alpha"],
            config["cutmix_alpha"],
            prob=config["prob"],
            switch_prob=config["switch_prob"],
            mode=mode,
            smoothing=config["label_smoothing"],
        )
        with GivenDraws(rand, beta, randint):
            mixed, targets = mixing(images.clone(), labels)
        case.compare(f"{name}_image", mixed)
        case.compare(f"{name}_target", targets)
        case.compare(f"{name}_loss", F.cross_entropy(logits, targets))
        if name == "cutmix_batch":
            top, bottom, left, right = extent((mixed != images).any(0).any(0)).tolist()
            case.compare("cutmix_batch_box", torch.tensor([top, bottom, left, right]))
            case.compare("cutmix_batch_lam", torch.tensor(1 - (bottom - top) * (right - left) / images[0, 0].numel()))
    case.compare("smoothing_ce_loss", F.cross_entropy(logits, labels, label_smoothing=config["label_smoothing"]))
    case.compare("ce_loss", F.cross_entropy(logits, labels))
