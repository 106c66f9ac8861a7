"""Resizing for evaluation: pixel for pixel as torchvision does it on Pillow's images, masks along with images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from lightning_xai.data.evaluation_resize import CropResize, SquashResize


def picture(height: int, width: int) -> torch.Tensor:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def by_torchvision(image: torch.Tensor, *steps) -> torch.Tensor:
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
    return torch.from_numpy(np.array(transforms.Compose(steps)(pillow))).permute(2, 0, 1)


@pytest.mark.parametrize("shape, size", [((90, 120), 64), ((260, 240), 232), ((200, 77), 48), ((31, 31), 64)])
def test_crop_is_that_of_the_published_evaluation(shape, size):
    image = picture(*shape)
    ours, target = CropResize(size)(image, {})
    short = int(size / 0.875) if size <= 224 else size
    bicubic = transforms.InterpolationMode.BICUBIC
    expected = by_torchvision(image, transforms.Resize(short, bicubic), transforms.CenterCrop(size))
    assert torch.equal(ours, expected) and target["size"].tolist() == [size, size]


def test_squash_is_that_of_the_published_tests():
    image = picture(60, 90)
    ours, target = SquashResize(48)(image, {})
    assert torch.equal(ours, by_torchvision(image, transforms.Resize((48, 48))))
    assert target["size"].tolist() == [48, 48]


@pytest.mark.parametrize("resize", [CropResize(32), SquashResize(32), CropResize(32, share=1.0)])
def test_the_mask_stays_on_its_object(resize):
    """A white disc on black: what is white in the resized picture is 1 in the resized mask, unknown stays unknown."""
    y, x = torch.meshgrid(torch.arange(100), torch.arange(140), indexing="ij")
    disc = (y - 50) ** 2 + (x - 80) ** 2 < 30**2
    image = (255 * disc).to(torch.uint8).expand(3, -1, -1)
    mask = disc.to(torch.int8)
    mask[48:52, 78:82] = -1
    target = {"object_mask": mask, "label": 3}
    small, resized = resize(image, target)
    assert resized["object_mask"].dtype == torch.int8 and resized["object_mask"].shape == (32, 32)
    assert (resized["object_mask"] == -1).any() and resized["label"] == 3
    differ = (small[0] > 127) != (resized["object_mask"] != 0)
    assert differ.float().mean() < 0.02, "only pixels on the edge may fall on the other side"
    assert target["object_mask"].shape == (100, 140), "the given target is not changed"


def test_a_sliver_is_cut_before_it_is_enlarged():
    image, _ = CropResize(64)(picture(2, 30000), {"object_mask": torch.zeros(2, 30000, dtype=torch.int8)})
    assert image.shape == (3, 64, 64)


def test_bad_arguments():
    with pytest.raises(ValueError, match="size=0"):
        CropResize(0)
    with pytest.raises(ValueError, match=r"share=1.5 .* up to 1"):
        CropResize(32, share=1.5)
    with pytest.raises(ValueError, match="size=-1"):
        SquashResize(-1)


@pytest.mark.parametrize("shape", [(224, 224), (300, 500), (500, 300), (64, 40), (3, 400), (256, 257)])
@pytest.mark.parametrize("resize", [CropResize(224), CropResize(64, share=1.0), SquashResize(32)])
def test_what_is_seen_of_a_picture(shape, resize):
    """A picture whose colours say where its pixels are: the result's own places follow from the part that is seen."""
    h, w = shape
    places = torch.stack(
        [torch.arange(w).expand(h, w) / w, torch.arange(h)[:, None].expand(h, w) / h, torch.zeros(h, w)]
    )
    result = resize((places * 255).round().byte(), {})[0].float() / 255
    x1, y1, x2, y2 = resize.seen(h, w)
    assert 0 <= x1 < x2 <= w and 0 <= y1 < y2 <= h
    for axis, (low, high, side) in enumerate([(x1, x2, w), (y1, y2, h)]):
        found = result[0].mean(0) if axis == 0 else result[1].mean(1)
        centres = low + (torch.arange(len(found)) + 0.5) * (high - low) / len(found)  # of the result's pixels
        inner = slice(len(found) // 8, -(len(found) // 8))  # a filter of finite width bends a ramp at its ends
        torch.testing.assert_close(found[inner] * side, (centres - 0.5)[inner], rtol=0, atol=max(0.012 * side, 0.6))
