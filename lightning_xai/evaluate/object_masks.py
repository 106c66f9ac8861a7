"""The true mask of the object that each explanation is of, whatever the kind of data set."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_xai.evaluate.segmentation import UNKNOWN
from lightning_xai.explain.explainable import Explained


def object_masks(explained: Explained, batch: Mapping[str, Any]) -> Tensor:
    """Labels (T, h, w) int8 of the pixels of the (padded) network input: 1 on the object, 0 beside it, -1 unknown.

    A classification batch has `object_masks` (B, h, w). In a detection batch the ground truth of each target has
    `masks` (N, h0, w0) in pixels of the original image, and `explained.objects` says whose each is; padding is unknown.
    Raises ValueError where there are no masks, or nobody says which object is meant.
    """
    samples = explained.targets.samples.cpu()
    if "targets" not in batch:
        if "object_masks" not in batch:
            raise ValueError("the images come without masks of their objects; give the data module masks")
        return batch["object_masks"][samples.to(batch["object_masks"].device)].cpu()
    if explained.objects is None:
        raise ValueError("nobody says of which annotated object a detection is; explain the choice 'truth'")
    height, width = batch["images"].shape[-2:]
    labels = torch.full((len(samples), height, width), UNKNOWN, dtype=torch.int8)
    for place, sample, number in zip(labels, samples.tolist(), explained.objects.tolist(), strict=True):
        target = batch["targets"][sample]
        mask = trained_masks(target)[number]
        h, w = target["size"].tolist()
        if tuple(mask.shape) != (h, w):
            mask = F.interpolate(mask[None, None].float(), size=(h, w), mode="nearest-exact")[0, 0]
        place[:h, :w] = mask.to(torch.int8)
    return labels


def trained_masks(target: Mapping[str, Any]) -> Tensor:
    """Masks (N, h, w) of the objects that a target lists: its ground truth also has crowds and empty boxes.

    Raises ValueError where the ground truth has no masks, or other objects than the target.
    """
    truth = target.get("ground_truth", {})
    if "masks" not in truth:
        raise ValueError("the annotations come without masks of their objects; give the data module masks: true")
    height, width = target["orig_size"].tolist()
    corners = truth["boxes"].reshape(-1, 2, 2).clamp(min=0)
    corners = torch.minimum(corners, corners.new_tensor([width, height]))
    listed = (corners[:, 1] > corners[:, 0]).all(1) & (truth["iscrowd"] == 0)
    if int(listed.sum()) != len(target["labels"]):
        raise ValueError(
            f"image {int(target['image_id'])}: the ground truth has {int(listed.sum())} objects with a box, the target "
            f"{len(target['labels'])}"
        )
    return truth["masks"][listed]
