"""DETR's detections: a known answer."""

import pytest
import torch

from lightning_xai.tasks.detr_postprocess import query_detections


def test_best_class_of_each_query_without_no_object_and_boxes_in_pixels():
    probabilities = torch.tensor([[[0.2, 0.1, 0.7], [0.1, 0.6, 0.3]]])
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 0.5], [0.25, 0.5, 0.1, 0.2]]])
    found = query_detections(probabilities.log() + 3, boxes, torch.tensor([[100, 200]]))
    assert found["labels"].tolist() == [[0, 1]]
    assert found["scores"][0].tolist() == pytest.approx([0.2, 0.6])
    torch.testing.assert_close(found["boxes"], torch.tensor([[[0.0, 25, 200, 75], [40, 40, 60, 60]]]))
