import torch

from lightning_xai.data.detection_batch import collate_detection


def test_images_are_padded_at_the_bottom_and_right():
    tall = torch.full((3, 5, 2), 7, dtype=torch.uint8)
    wide = torch.full((3, 3, 6), 9, dtype=torch.uint8)
    batch = collate_detection([(tall, {"image_id": 1}), (wide, {"image_id": 2})])
    assert batch["images"].shape == (2, 3, 5, 6) and batch["images"].dtype == torch.uint8
    expected = torch.zeros(2, 3, 5, 6, dtype=torch.uint8)
    expected[0, :, :, :2] = 7
    expected[1, :, :3] = 9
    assert torch.equal(batch["images"], expected)
    assert torch.equal(batch["mask"], (expected == 0)[:, 0])
    assert [target["image_id"] for target in batch["targets"]] == [1, 2]


def test_sizes_are_rounded_up_to_a_multiple():
    batch = collate_detection([(torch.ones(3, 5, 8, dtype=torch.uint8), {})], pad_to_multiple=4)
    assert batch["images"].shape == (1, 3, 8, 8)
    assert batch["mask"].sum() == 3 * 8


def test_batch_lies_in_channels_last_memory():
    batch = collate_detection([(torch.ones(3, 4, 5, dtype=torch.uint8), {})] * 2)
    assert batch["images"].is_contiguous(memory_format=torch.channels_last)
