import random

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_xai.data.detection_transforms import (
    Draws,
    EvaluationTransform,
    TrainingTransform,
    crop,
    horizontal_flip,
    resample_as_pillow,
    resample_bytes,
    resize,
    resized_shape,
    sample_seed,
)


def picture(height, width):
    """Smooth random pixels, as photographs have, with a decoder's strides."""
    small = np.random.default_rng(0).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def sample(height, width, *boxes):
    """A black picture in which each box is white, so that the pixels themselves say where the boxes are."""
    image = torch.zeros(height, width, 3, dtype=torch.uint8).permute(2, 0, 1)
    for x0, y0, x1, y1 in boxes:
        image[:, y0:y1, x0:x1] = 255
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    n = len(boxes)
    return image, {
        "boxes": boxes,
        "labels": torch.arange(n),
        "area": sides.prod(dim=1) / 2,
        "iscrowd": torch.zeros(n, dtype=torch.int64),
        "size": torch.tensor([height, width]),
        "orig_size": torch.tensor([height, width]),
    }


def white_box(image):
    rows, columns = (image[0] > 127).any(1).nonzero(), (image[0] > 127).any(0).nonzero()
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


@pytest.mark.parametrize(
    "shape, short, longest, expected",
    [
        ((480, 640), 800, 1333, (800, 1066)),
        ((480, 640), 480, 1333, (480, 640)),
        ((640, 427), 800, 1333, (1199, 800)),
        ((100, 1333), 800, 1333, (100, 1333)),
        ((100, 2000), 800, 1333, (67, 1340)),
        ((9999, 1), 800, 1333, (1333, 1)),
        ((500, 500), 600, None, (600, 600)),
        ((10, 1000), 600, None, (600, 60000)),
    ],
)
def test_resized_shape(shape, short, longest, expected):
    assert resized_shape(shape, short, longest) == expected


def test_boxes_follow_the_pixels():
    image, target = sample(60, 80, (10, 20, 31, 45))
    flipped, flipped_target = horizontal_flip(image, target)
    assert flipped_target["boxes"][0].tolist() == white_box(flipped) == [49, 20, 70, 45]
    cut, cut_target = crop(image, target, (25, 5, 30, 20))
    assert cut_target["boxes"][0].tolist() == white_box(cut) == [5, 0, 20, 20]
    assert cut_target["size"].tolist() == [30, 20] and cut_target["area"].tolist() == [300]
    large, large_target = resize(image, target, (120, 240))
    assert large_target["boxes"][0].tolist() == white_box(large) == [30, 40, 93, 90]
    assert large_target["area"].item() == target["area"].item() * 6


def test_boxes_outside_a_crop_are_dropped_with_everything_of_theirs():
    image, target = sample(60, 80, (0, 0, 10, 10), (40, 30, 60, 50), (0, 30, 20, 40))
    _, cut = crop(image, target, (25, 20, 30, 50))
    assert cut["labels"].tolist() == [1]
    assert len(cut["boxes"]) == len(cut["area"]) == len(cut["iscrowd"]) == 1


@pytest.mark.parametrize("seed", range(12))
def test_training_transform_moves_boxes_with_pixels(seed):
    image, target = sample(311, 421, (150, 100, 270, 210))
    transform = TrainingTransform(scales=(200, 260), max_size=400, crop_scales=(220,), crop_range=(150, 200))
    changed, changed_target = transform(image, target, Draws(seed))
    assert changed.dtype == torch.uint8 and tuple(changed_target["size"].tolist()) == changed.shape[1:]
    assert torch.allclose(changed_target["boxes"][0], torch.tensor(white_box(changed), dtype=torch.float32), atol=1.01)


def test_an_image_without_boxes_goes_through():
    image, target = sample(50, 60)
    for seed in range(6):
        _, changed = TrainingTransform()(image, target, Draws(seed))
        assert changed["boxes"].shape == (0, 4)


def test_a_small_picture_is_cropped_within_its_size():
    image, target = sample(30, 90, (5, 5, 20, 20))
    transform = TrainingTransform(scales=(40,), crop_scales=(32,), crop_range=(384, 600), crop_probability=1.0)
    changed, _ = transform(image, target, Draws(0))
    assert changed.shape == (3, 40, 120)


def test_a_sliver_does_not_become_a_gigabyte():
    image, target = sample(1, 9000)
    shape = TrainingTransform(crop_probability=1.0)(image, target, Draws(0))[0].shape
    assert max(shape) < 1400


def test_the_given_target_is_left_as_it_was():
    image, target = sample(60, 80, (10, 20, 31, 45))
    before = {name: value.clone() for name, value in target.items()}
    TrainingTransform(crop_probability=1.0, flip_probability=1.0)(image, target, Draws(0))
    assert all(torch.equal(before[name], target[name]) for name in before)


def test_draws_are_the_two_global_streams_of_the_reference_without_touching_them():
    before = random.getstate(), torch.get_rng_state()
    draws = Draws(11)
    ours = [draws.uniform(), draws.choice((1, 2, 3, 4)), draws.integer(5, 900), draws.crop_corner(70, 0)]
    assert before[0] == random.getstate() and torch.equal(before[1], torch.get_rng_state())
    with torch.random.fork_rng():
        random.seed(11)
        torch.manual_seed(11)
        corner = torch.randint(0, 71, (1,)).item(), torch.randint(0, 1, (1,)).item()
        assert ours == [random.random(), random.choice((1, 2, 3, 4)), random.randint(5, 900), corner]
    random.setstate(before[0])
    assert Draws(11).crop_corner(0, 0) == (0, 0)


def test_sample_seeds_differ():
    seeds = {sample_seed(seed, epoch, index) for seed in range(3) for epoch in range(10) for index in range(100)}
    assert len(seeds) == 3000


@pytest.mark.parametrize("shape", [(90, 121), (480, 640), (37, 50)])
def test_bytes_resize_is_pillows_to_one_grey_level(shape):
    image = picture(240, 320)
    ours, theirs = resample_bytes(image, shape), resample_as_pillow(image, shape)
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.02


def test_pictures_keep_channels_last_strides_also_after_a_crop():
    image, target = picture(240, 320), sample(240, 320)[1]
    cut, target = crop(image, target, (10, 20, 100, 120))
    resized, _ = resize(cut, target, (150, 180))
    assert resized.stride() == (1, 3 * 180, 3)


def test_evaluation_transform():
    image, target = sample(60, 80, (10, 20, 31, 45))
    changed, changed_target = EvaluationTransform(120, 150)(image, target)
    assert changed.shape == (3, 112, 149) and changed_target["orig_size"].tolist() == [60, 80]


@pytest.mark.parametrize(
    "arguments", [{"scales": ()}, {"scales": (0,)}, {"crop_range": (600, 384)}, {"crop_scales": ()}]
)
def test_wrong_sizes_are_refused(arguments):
    with pytest.raises(ValueError, match="should be"):
        TrainingTransform(**arguments)
    with pytest.raises(ValueError, match="size=0"):
        EvaluationTransform(0)
