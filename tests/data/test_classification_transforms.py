"""The augmentation of fine-tuning: a function of the seed alone, within its stated bounds."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_xai.data.classification_transforms import FineTuneAugmentation, augmentation_policy, global_draws_from
from lightning_xai.data.detection_transforms import Draws

PLAIN = {"auto_augment": None, "erasing": 0.0, "flip": 0.0}


def picture(height: int = 40, width: int = 60) -> torch.Tensor:
    """Columns of rising brightness, rows of rising green."""
    columns = torch.linspace(0, 255, width).expand(height, width)
    rows = torch.linspace(0, 255, height)[:, None].expand(height, width)
    return torch.stack([columns, rows, 255 - columns]).to(torch.uint8)


def target() -> dict:
    return {"label": torch.tensor(1), "index": torch.tensor(7), "object_mask": torch.zeros(40, 60, dtype=torch.int8)}


@pytest.mark.parametrize("options", [{}, {"auto_augment": None, "color_jitter": 0.4}, {"auto_augment": "augmix-m3-w3"}])
def test_a_seed_gives_one_image_whatever_the_global_state(options):
    augment = FineTuneAugmentation(32, **options)
    first, about = augment(picture(), target(), Draws(5))
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = random.Random(1).random(), np.random.RandomState(2).rand()
    again, about_again = augment(picture(), target(), Draws(5))
    assert torch.equal(first, again) and torch.equal(about["erased"], about_again["erased"])
    assert (random.random(), np.random.rand()) == expected
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(3)))
    others = [augment(picture(), target(), Draws(seed))[0] for seed in range(6, 10)]
    assert all(not torch.equal(first, other) for other in others)
    assert first.dtype == torch.uint8 and first.shape == (3, 32, 32)


def test_targets():
    given = target()
    _, about = FineTuneAugmentation(32)(picture(), given, Draws(0))
    assert about["size"].tolist() == [32, 32] and about["erased"].shape == (32, 32) and "object_mask" not in about
    assert about["label"] == 1 and about["index"] == 7 and "object_mask" in given and "size" not in given
    assert "erased" not in FineTuneAugmentation(32, erasing=0.0)(picture(), given, Draws(0))[1]


def test_the_whole_picture_is_resized_where_the_crop_is_all_of_it():
    augment = FineTuneAugmentation(20, scale=(1.0, 1.0), ratio=(1.5, 1.5), **PLAIN)
    image, _ = augment(picture(), target(), Draws(0))
    assert torch.allclose(image[0].float().mean(), torch.tensor(127.5), atol=1)
    assert (image[0].float().diff(dim=1) >= 0).all() and (image[1].float().diff(dim=0) >= 0).all()


def test_crops_lie_within_the_stated_share_of_the_area():
    augment = FineTuneAugmentation(16, scale=(0.2, 0.4), ratio=(1.0, 1.0), **PLAIN)
    for seed in range(30):
        image, _ = augment(picture(), target(), Draws(seed))
        # the brightness runs over the columns that were cut out: 60 of them are 255
        side = (image[0, 8, -1].float() - image[0, 8, 0].float()) / 255 * 60
        assert (0.2 * 2400) ** 0.5 - 3 < side < (0.4 * 2400) ** 0.5 + 3


def test_half_of_the_pictures_are_mirrored_and_a_quarter_erased():
    augment = FineTuneAugmentation(16, scale=(1.0, 1.0), auto_augment=None)
    samples = [augment(picture(), target(), Draws(seed)) for seed in range(200)]
    mirrored = sum(bool(image[0, 8, 0] > image[0, 8, -1]) for image, _ in samples)
    shares = torch.stack([about["erased"].float().mean() for _, about in samples])
    assert 75 < mirrored < 125 and 30 < int((shares > 0).sum()) < 70
    assert shares.max() < 0.45 and shares[shares > 0].min() > 0.005


def test_two_boxes_may_be_erased():
    augment = FineTuneAugmentation(64, erasing=1.0, erasing_count=5)
    rows = [augment(picture(), target(), Draws(seed))[1]["erased"].any(1).int() for seed in range(20)]
    assert any((row.diff() == 1).sum() + row[0] > 1 for row in rows)


@pytest.mark.parametrize("name, increasing", [("rand-m9-inc0", False), ("rand-m9-inc1", True), ("rand-m9", False)])
def test_inc0_means_what_it_says(name, increasing):
    names = [op.name for op in augmentation_policy(name, 224).ops]
    assert ("PosterizeIncreasing" in names) == increasing


@pytest.mark.parametrize(
    "name", ["rand-m9-inc1", "rand-m9-inc0", "original", "originalr", "v0", "v0r", "3a", "augmix-m9"]
)
def test_every_operation_bears_its_weakest_and_its_strongest_level(name):
    policy = augmentation_policy(name, 32)
    operations = policy.ops if hasattr(policy, "ops") else [op for part in policy.policy for op in part]
    image = Image.fromarray(picture().permute(1, 2, 0).numpy())
    for operation in operations:
        operation.prob, operation.magnitude_std = 1.0, 0
        for operation.magnitude in (0, 10):
            result = operation(image)
            assert result.size == image.size and result.mode == "RGB", operation.name
            if operation.name == "PosterizeIncreasing" and operation.magnitude == 10:
                assert not np.array(result).any()  # no bit is kept


def test_bad_arguments():
    with pytest.raises(ValueError, match="auto_augment='rnd-m9' is no policy of timm: expected one such as 'rand-m9"):
        FineTuneAugmentation(32, auto_augment="rnd-m9")
    with pytest.raises(ValueError, match="scale="):
        FineTuneAugmentation(32, scale=(0.5, 0.2))
    with pytest.raises(ValueError, match=r"erasing=1\.5 with erasing_count=1: expected a probability"):
        FineTuneAugmentation(32, erasing=1.5)
    with pytest.raises(ValueError, match=r"color_jitter=0\.4 goes without a policy only"):
        FineTuneAugmentation(32, color_jitter=0.4)


def test_global_draws_are_restored_after_an_error():
    random.seed(4)
    with pytest.raises(KeyError), global_draws_from(2**63):
        raise KeyError
    assert random.random() == random.Random(4).random()
