"""The segmentation test as a measure: the accumulator's numbers, by method."""

import pytest
import torch
import torch.nn.functional as F

from lightning_xai.evaluate.mask_segmentation import MaskSegmentation
from lightning_xai.evaluate.segmentation import SegmentationTest


def test_numbers_are_those_of_the_test_on_pixels(explained_maps):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 3, 3, generator=generator)
    masks = torch.randint(-1, 2, (3, 12, 12), generator=generator, dtype=torch.int8)
    measure = MaskSegmentation(f1_by_row=True)
    measure.begin(["a", "b"])
    for method, sign in (("a", 1), ("b", -1)):
        for samples in ([2, 0], [1]):
            batch = {"images": torch.zeros(3, 3, 12, 12), "object_masks": masks, "index": torch.arange(10, 13)}
            measure.update(method, *explained_maps(sign * maps[samples], samples=samples), batch)
    expected = SegmentationTest(f1_by_row=True)
    enlarged = F.interpolate(maps[:, None], size=(12, 12), mode="bilinear", align_corners=False)[:, 0]
    expected.update([10, 11, 12], enlarged, masks)
    table = measure.compute()
    assert table["a"] == expected.compute() and table["a"]["images"] == 3
    assert table["b"] != table["a"]


def test_several_targets_of_an_image(explained_maps):
    measure = MaskSegmentation()
    assert measure.choice == "predicted" and MaskSegmentation(choice="truth").choice == "truth"
    measure.begin(["a"])
    batch = {"images": torch.zeros(1, 3, 4, 4), "object_masks": torch.ones(1, 4, 4, dtype=torch.int8), "index": [0]}
    with pytest.raises(ValueError, match="an image has several explanations"):
        measure.update("a", *explained_maps(torch.rand(2, 2, 2), samples=[0, 0]), batch)
