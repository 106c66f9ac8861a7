from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lightning_xai.data.coco_annotations import read_annotations
from lightning_xai.data.coco_detection import CocoDetection, detection_target, find_missing
from lightning_xai.data.detection_transforms import EvaluationTransform, TrainingTransform
from lightning_xai.data.picture_faults import OTHER_SIZE
from lightning_xai.data.picture_file import UnreadablePicture

SMALL_TRAINING = TrainingTransform(scales=(30, 40), crop_scales=(30, 40), crop_range=(20, 30))


def dataset(coco, transform=SMALL_TRAINING, **arguments):
    return CocoDetection(coco.root / "train2017", read_annotations(coco.file("train")), transform, **arguments)


def as_list(samples):
    return samples


def same(a, b):
    return torch.equal(a[0], b[0]) and all(torch.equal(a[1][name], b[1][name]) for name in a[1])


def test_targets_drop_crowds_and_empty_boxes_and_clip_the_rest():
    boxes = torch.tensor([[-5.0, 10, 20, 30], [90, 40, 20, 20], [3, 3, 0, 5], [110, 3, 5, 5], [1, 1, 5, 5]])
    labels, area = torch.tensor([4, 5, 6, 7, 8]), torch.tensor([1.0, 2, 3, 4, 5])
    target = detection_target(boxes, labels, area, torch.tensor([0, 0, 0, 0, 1]), (50, 100))
    assert target["boxes"].tolist() == [[0, 10, 15, 40], [90, 40, 100, 50]]
    assert target["labels"].tolist() == [4, 5] and target["area"].tolist() == [1, 2]
    assert target["size"].tolist() == target["orig_size"].tolist() == [50, 100]


def test_an_item_is_what_the_contract_says(coco):
    image, target = dataset(coco, EvaluationTransform(80), with_ground_truth=True)[2]
    assert image.shape == (3, 80, 100) and image.dtype == torch.uint8
    assert target["boxes"].tolist() == [[10, 12, 50, 32]] and target["area"].tolist() == [600]
    assert target["labels"].tolist() == [3] and target["iscrowd"].tolist() == [0]
    assert target["image_id"].item() == 102
    assert target["size"].tolist() == [80, 100] and target["orig_size"].tolist() == [40, 50]
    for name in ("labels", "iscrowd", "image_id", "size", "orig_size"):
        assert target[name].dtype == torch.int64
    assert target["ground_truth"]["boxes"].tolist() == [[5, 6, 25, 16]]
    assert target["ground_truth"]["area"].tolist() == [150]


def test_ground_truth_keeps_crowds_and_unclipped_boxes(coco):
    content = coco.read("train")
    content["annotations"] += [
        {"image_id": 100, "category_id": 1, "bbox": [40, 30, 30, 30], "area": 900, "iscrowd": 1},
        {"image_id": 100, "category_id": 1, "bbox": [40, 30, 30, 30], "area": 900, "iscrowd": 0},
    ]
    coco.write("train", content)
    _, target = dataset(coco, EvaluationTransform(40), with_ground_truth=True)[0]
    assert target["labels"].tolist() == [3, 1]
    assert target["ground_truth"]["boxes"].tolist() == [[5, 6, 25, 16], [40, 30, 70, 60], [40, 30, 70, 60]]
    assert target["ground_truth"]["iscrowd"].tolist() == [0, 1, 0]


def test_augmentation_depends_on_seed_epoch_and_index_only(coco):
    first, second, other_seed = dataset(coco), dataset(coco), dataset(coco, seed=1)
    state = torch.get_rng_state()
    samples = [first[epoch, 4] for epoch in range(6)]
    assert torch.equal(state, torch.get_rng_state())
    assert all(same(samples[epoch], second[epoch, 4]) for epoch in reversed(range(6)))
    assert len({tuple(image.shape) + tuple(target["boxes"].flatten().tolist()) for image, target in samples}) > 3
    assert not all(same(samples[epoch], other_seed[epoch, 4]) for epoch in range(6))
    assert same(first[4], first[0, 4])


def test_workers_change_nothing(coco):
    keys = [(3, index) for index in range(9)]

    def run(workers):
        loader = DataLoader(dataset(coco), 2, sampler=keys, num_workers=workers, collate_fn=as_list)
        return [sample for batch in loader for sample in batch]

    assert all(same(a, b) for a, b in zip(run(0), run(2), strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_picture_is_replaced_by_the_next_readable_one(coco, workers):
    coco.picture("train", 3).write_bytes(b"nothing like a picture")
    coco.picture("train", 4).write_bytes(coco.picture("train", 4).read_bytes()[:100])
    coco.picture("train", 8).unlink()
    images = dataset(coco, max_bad_images=3)
    loader = DataLoader(images, 1, num_workers=workers, collate_fn=as_list)
    assert [int(batch[0][1]["image_id"]) for batch in loader] == [100, 101, 102, 105, 105, 105, 106, 107, 100]
    line = images.news()
    assert "3 unreadable pictures" in line and "3 of 9 so far" in line and "\n" not in line
    assert all(str(coco.picture("train", i)) in line for i in (3, 4, 8))
    assert images.news() is None


def test_boxes_come_from_the_annotations_alone(coco):
    content = coco.read("train")
    content["annotations"].append({"image_id": 103, "category_id": 1, "bbox": [40, 30, 30, 30], "area": 900})
    coco.write("train", content)
    images = dataset(coco)
    expected = images.load(3)[1]["boxes"]
    for index in range(9):
        coco.picture("train", index).write_bytes(b"")
    boxes, shape = images.boxes(3)
    assert torch.equal(boxes, expected) and boxes.tolist() == [[5, 6, 25, 16], [40, 30, 50, 40]]
    assert shape == (40, 50) and not images.faults.flags.any()


def test_boxes_where_no_size_is_stated_are_those_of_the_picture_that_is_read(coco):
    content = coco.read("train")
    for image in content["images"]:
        del image["width"], image["height"]
    coco.write("train", content)
    Image.new("RGB", (20, 12)).save(coco.picture("train", 4))
    coco.picture("train", 3).write_bytes(b"")
    images = dataset(coco)
    for index in (3, 4):
        boxes, shape = images.boxes(index)
        assert boxes.tolist() == [[5, 6, 20, 12]] and shape == (12, 20)
    assert int(images.load_readable(3)[1]["image_id"]) == 104


def test_too_many_unreadable_pictures_are_an_error_that_names_the_last(coco):
    for index in (2, 5):
        coco.picture("train", index).write_bytes(b"")
    images = dataset(coco, max_bad_images=0.1)
    assert int(images[2][1]["image_id"]) == 103
    with pytest.raises(
        UnreadablePicture, match=r"2 of 9 pictures .* max_bad_images allows 1; .*5\.png \(an empty file\)"
    ):
        images[5]
    with pytest.raises(UnreadablePicture, match="max_bad_images allows 0"):
        dataset(coco, max_bad_images=0)[2]


def test_no_readable_picture_at_all(coco):
    for index in range(9):
        coco.picture("train", index).write_bytes(b"")
    with pytest.raises(UnreadablePicture, match="None of the 9 pictures"):
        dataset(coco, max_bad_images=9)[0]


def test_a_picture_of_another_size_than_stated_is_read_as_it_is_and_counted(coco):
    Image.fromarray(np.zeros((12, 20, 3), dtype=np.uint8)).save(coco.picture("train", 1))
    images = dataset(coco, EvaluationTransform(12))
    _, target = images[1]
    assert target["orig_size"].tolist() == [12, 20] and target["boxes"].tolist() == [[5, 6, 20, 12]]
    assert images.faults.flags.tolist() == [0, OTHER_SIZE] + [0] * 7
    assert "1 pictures of another size" in images.news()


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1", "I;16"])
def test_pictures_of_other_modes(coco, mode):
    if mode == "I;16":
        picture = Image.fromarray(np.full((40, 50), 40_000, dtype=np.uint16))
    else:
        picture = Image.new("RGB", (50, 40), (102, 102, 102)).convert(mode)
    path = coco.root / "train2017" / "0.tiff"
    picture.save(path)
    path.rename(coco.picture("train", 0))  # the content decides, not the name
    image, _ = dataset(coco, EvaluationTransform(40))[0]
    assert image.shape == (3, 40, 50) and torch.equal(image[0], image[1])


def test_huge_pictures_count_as_unreadable(coco):
    Image.new("RGB", (100, 100)).save(coco.picture("train", 0))
    images = dataset(coco, max_pixels=9999)
    assert int(images[0][1]["image_id"]) == 101
    assert "100×100 is more than max_pixels=9999" in images.news()


def test_files_held_in_memory_are_not_read_again(coco):
    images, plain = dataset(coco), dataset(coco)
    expected = [plain[0, index] for index in range(9)]
    images.hold_in_memory([0, 2, 4, 6, 8])
    for index in (0, 2, 4, 6, 8):
        coco.picture("train", index).unlink()
    assert all(same(images[0, index], expected[index]) for index in range(9))


def test_find_missing(coco):
    coco.picture("train", 2).unlink()
    content = coco.read("train")
    content["images"].append({"id": 500, "file_name": "deeper/x.png", "width": 1, "height": 1})
    coco.write("train", content)
    annotations = read_annotations(coco.file("train"))
    assert find_missing(coco.root / "train2017", annotations).nonzero()[0].tolist() == [2, 9]
    assert find_missing(Path("nowhere"), annotations).all()
