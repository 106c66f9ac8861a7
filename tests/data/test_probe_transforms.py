"""The linear probe's augmentation: the law of its crops, and that it depends on its draws alone."""

import math

import pytest
import torch

from lightning_xai.data.detection_transforms import Draws
from lightning_xai.data.probe_transforms import ProbeAugmentation, crop_sides


def picture(height=40, width=60):
    """Red tells the row, green the column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows * 4, columns * 4, torch.zeros_like(rows)]).to(torch.uint8)


def test_crops_have_their_share_of_area_and_aspect():
    crops = [crop_sides((400, 600), (0.2, 0.3), (0.8, 1.25), Draws(seed)) for seed in range(500)]
    shares = torch.tensor([h * w / 240_000 for h, w in crops])
    aspects = torch.tensor([math.log(w / h) for h, w in crops])
    assert shares.min() > 0.198 and shares.max() < 0.302
    assert shares.mean().item() == pytest.approx(0.25, abs=0.005)
    assert aspects.abs().max() < math.log(1.26)
    assert aspects.mean().abs() < 0.02 and aspects.std().item() == pytest.approx(2 * math.log(1.25) / 12**0.5, rel=0.1)


def test_sides_are_cut_to_the_image_and_no_crop_is_drawn_again():
    for seed in range(50):
        height, width = crop_sides((10, 200), (0.9, 1.0), (0.5, 2.0), Draws(seed))
        assert height == 10 and 28 <= width <= 64
    assert crop_sides((2, 2), (0.01, 0.01), (1.0, 1.0), Draws(0)) == (1, 1)


def test_result_follows_from_the_draws_and_the_target_says_its_size():
    augment = ProbeAugmentation(size=16)
    target = {"label": torch.tensor(3), "object_mask": torch.zeros(40, 60, dtype=torch.int8)}
    first, changed = augment(picture(), target, Draws(7))
    assert first.shape == (3, 16, 16) and first.dtype == torch.uint8
    assert torch.equal(augment(picture(), target, Draws(7))[0], first)
    assert not torch.equal(augment(picture(), target, Draws(8))[0], first)
    assert changed["size"].tolist() == [16, 16] and set(changed) == {"label", "size"} and "size" not in target


def test_mirroring():
    plain, mirrored = (ProbeAugmentation(size=16, flip=flip)(picture(), {}, Draws(7))[0] for flip in (0.0, 1.0))
    assert torch.equal(plain.flip(2), mirrored)
    assert (plain[1].float().diff(dim=1) >= 0).all()


@pytest.mark.parametrize("options", [{"size": 0}, {"scale": (0.5, 0.2)}, {"scale": (0.5, 1.5)}, {"ratio": (0, 1)}])
def test_arguments_that_cannot_be(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ProbeAugmentation(**options)
