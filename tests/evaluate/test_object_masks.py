"""Each target's mask on the network's input: images of a classifier, objects of a detector, resized and padded."""

import pytest
import torch

from lightning_xai.evaluate.object_masks import object_masks


def detection_batch() -> dict:
    """Two images of 4x6 and 4x4 on a padded 8x8 input; the first, twice as large as its file, has a crowd."""
    masks = torch.zeros(4, 2, 3, dtype=torch.bool)
    for number in range(4):
        masks[number, number % 2, number % 3] = True
    truth = {
        "boxes": torch.tensor([[0.0, 0, 1, 1], [1, 1, 2, 2], [2, 0, 3, 1], [4, 0, 9, 2]]),
        "iscrowd": torch.tensor([0, 1, 0, 0]),
        "masks": masks,
    }
    small = {"boxes": torch.tensor([[1.0, 1, 3, 3]]), "iscrowd": torch.zeros(1, dtype=torch.int64)}
    small["masks"] = torch.zeros(1, 4, 4, dtype=torch.bool)
    small["masks"][0, 1:3, 1:3] = True
    return {
        "images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        "targets": [
            {"size": torch.tensor([4, 6]), "orig_size": torch.tensor([2, 3]), "labels": torch.tensor([5, 7])}
            | {"image_id": torch.tensor(11), "ground_truth": truth},
            {"size": torch.tensor([4, 4]), "orig_size": torch.tensor([4, 4]), "labels": torch.tensor([5])}
            | {"image_id": torch.tensor(12), "ground_truth": small},
        ],
    }


def test_objects_of_a_detector(explained_maps):
    _, explained = explained_maps(torch.zeros(3, 2, 2), samples=[1, 0, 0], objects=[0, 1, 0])
    masks = object_masks(explained, detection_batch())
    assert masks.dtype == torch.int8 and masks.shape == (3, 8, 8)
    assert (masks[0, 1:3, 1:3] == 1).all() and masks[0, :4, :4].sum() == 4
    assert (masks[0, 4:] == -1).all() and (masks[0, :, 4:] == -1).all()
    # the second object that the target lists is the third of the ground truth: a crowd lies between them
    assert (masks[1, :2, 4:6] == 1).all() and masks[1, :4, :6].sum() == 4
    assert (masks[2, :2, :2] == 1).all() and masks[2, :4, :6].sum() == 4
    assert (masks[1:, 4:] == -1).all() and (masks[1:, :, 6:] == -1).all()


def test_images_of_a_classifier(explained_maps):
    _, explained = explained_maps(torch.zeros(2, 2, 2), samples=[2, 0])
    given = torch.tensor([0, 1, -1], dtype=torch.int8)[:, None, None].expand(3, 4, 4)
    batch = {"images": torch.zeros(3, 3, 4, 4), "object_masks": given}
    assert object_masks(explained, batch)[:, 0, 0].tolist() == [-1, 0]


def test_what_is_missing_is_named(explained_maps):
    _, explained = explained_maps(torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="the images come without masks"):
        object_masks(explained, {"images": torch.zeros(1, 3, 4, 4)})
    with pytest.raises(ValueError, match="explain the choice 'truth'"):
        object_masks(explained, detection_batch())
    _, explained = explained_maps(torch.zeros(1, 2, 2), objects=[0])
    batch = detection_batch()
    batch["targets"][0]["labels"] = torch.tensor([5, 7, 5])
    with pytest.raises(ValueError, match="image 11: the ground truth has 2 objects with a box, the target 3"):
        object_masks(explained, batch)
    del batch["targets"][0]["ground_truth"]["masks"]
    with pytest.raises(ValueError, match="give the data module masks: true"):
        object_masks(explained, batch)
