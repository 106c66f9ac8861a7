"""Samples become a batch: bytes in channels-last memory, masks only where all have one."""

import pytest
import torch

from lightning_xai.data.classification_batch import collate_classification


def sample(index: int, size: int = 4, **extra) -> tuple[torch.Tensor, dict]:
    image = torch.full((3, size, size), index, dtype=torch.uint8)
    return image, {"label": torch.tensor(index % 2), "index": torch.tensor(index), **extra}


def test_a_batch():
    batch = collate_classification([sample(5), sample(2)])
    assert set(batch) == {"images", "labels", "index"}
    assert batch["images"].dtype == torch.uint8 and batch["images"].is_contiguous(memory_format=torch.channels_last)
    assert batch["images"][:, 0, 0, 0].tolist() == [5, 2]
    assert batch["labels"].tolist() == [1, 0] and batch["index"].tolist() == [5, 2]
    assert batch["labels"].dtype == batch["index"].dtype == torch.int64


def test_masks_where_all_have_one():
    mask = torch.ones(4, 4, dtype=torch.int8)
    assert "object_masks" not in collate_classification([sample(0, object_mask=mask), sample(1)])
    masks = collate_classification([sample(0, object_mask=mask), sample(1, object_mask=-mask)])["object_masks"]
    assert masks.dtype == torch.int8 and masks[:, 0, 0].tolist() == [1, -1]


def test_images_of_several_sizes():
    with pytest.raises(ValueError, match=r"images of \(4, 4\) and \(6, 6\) pixels"):
        collate_classification([sample(0), sample(1, size=6)])
