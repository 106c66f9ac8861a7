"""The best (query, class) pairs, in pixels."""

import torch
import torch.nn.functional as F

from lightning_xai.tasks.detection_postprocess import masks_in_images, split_images, top_detections


def test_known_detections():
    logits = torch.full((1, 3, 2), -5.0)
    logits[0, 2, 1], logits[0, 0, 0], logits[0, 2, 0] = 3.0, 2.0, 1.0
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.1, 0.1, 0.1, 0.1], [0.5, 0.25, 0.2, 0.1]]])
    found = top_detections(logits, boxes, torch.tensor([[100, 200]]), count=3)
    assert found["queries"].tolist() == [[2, 0, 2]]
    assert found["labels"].tolist() == [[1, 0, 0]]
    torch.testing.assert_close(found["scores"], torch.tensor([[3.0, 2.0, 1.0]]).sigmoid())
    expected = torch.tensor([[[80.0, 20, 120, 30], [0, 0, 200, 100], [80, 20, 120, 30]]])
    torch.testing.assert_close(found["boxes"], expected)
    (image,) = split_images(found)
    assert image["boxes"].shape == (3, 4) and image["labels"].tolist() == [1, 0, 0]


def test_fewer_pairs_than_asked_for():
    found = top_detections(torch.zeros(2, 3, 4), torch.rand(2, 3, 4), torch.tensor([[10, 10], [20, 20]]))
    assert found["scores"].shape == (2, 12)


def test_masks_are_cropped_before_they_are_resized_to_the_original():
    masks = torch.full((1, 1, 2, 2), -1.0)
    masks[0, 0, :, 0] = 1.0  # left half set
    (found,) = masks_in_images(masks, torch.tensor([[8, 6]]), torch.tensor([[16, 12]]))
    resized = F.interpolate(masks, (8, 6), mode="bilinear")[0] > 0
    expected = resized.repeat_interleave(2, 1).repeat_interleave(2, 2)[None]
    assert found.shape == (1, 1, 16, 12)
    assert torch.equal(found, expected)
