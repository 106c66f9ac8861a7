"""Does relevance lie on the object? The image segmented by its explanation, against the object's true mask.

Protocol of Chefer et al. (CVPR 2021, arXiv 2012.09838, section 4, on ImageNet-Segmentation). Letters: B images of h x w
pixels; labels are 1 on the object, 0 beside it and -1 where nobody knows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_xai.evaluate.image_scores import ImageScores
from lightning_xai.explain.explanation import min_max

UNKNOWN = -1


def foreground(relevance: Tensor) -> Tensor:
    """Where the stretched relevance (B, h, w) is above its mean; nowhere in a constant map."""
    maps = min_max(relevance)
    return maps > maps.mean((-2, -1), keepdim=True)


def segmentation_counts(mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Pixels of each image: correct (B,), labelled (B,), intersection and union of (background, object) (B, 2).

    mask: (B, h, w), True where the object is said to be. labels: (B, h, w) of 1, 0 and -1.
    """
    known = labels != UNKNOWN
    said, true = (torch.stack([known & (x == 0), known & (x == 1)], 1) for x in (mask.long(), labels))  # (B, 2, h, w)
    return {
        "correct": (said & true).sum((1, 2, 3)),
        "labelled": known.sum((1, 2)),
        "intersection": (said & true).sum((2, 3)),
        "union": (said | true).sum((2, 3)),
    }


def segmentation_average_precision(relevance: Tensor, labels: Tensor) -> Tensor:
    """Average precision (B,) of the pixels' two scores (1 - r, r), r the stretched relevance, for their two classes.

    AP = sum over thresholds of (recall gained) x precision, background and object in one list of 2 h w decisions. A
    constant map has no scores: all of them count as 0.
    """
    from torchmetrics.functional.classification import binary_average_precision

    maps = min_max(relevance)
    says = maps.amax((-2, -1)) > 0
    scores = torch.stack([1 - maps, maps], 1) * says[:, None, None, None]
    true = torch.stack([labels == 0, labels == 1], 1).long()
    return torch.stack(
        [
            binary_average_precision(score[:, label != UNKNOWN], truth[:, label != UNKNOWN], validate_args=False)
            for score, truth, label in zip(scores, true, labels, strict=True)
        ]
    )


def segmentation_f1(mask: Tensor, labels: Tensor, by_row: bool = False) -> Tensor:
    """F1 = 2 TP / (2 TP + FP + FN) of the object's pixels in each image (B,), 0 where neither side has any.

    by_row: the mean over the image's rows of each row's F1, as the reference computes it; rows without object count 0
    there, so that the numbers are much lower.
    """
    known = labels != UNKNOWN
    said, true = mask.bool() & known, labels == 1
    axes = (-1,) if by_row else (-2, -1)
    both = (said & true).sum(axes)
    total = said.sum(axes) + true.sum(axes)
    f1 = torch.where(total > 0, 2 * both / total.clamp(min=1), 0.0)
    return f1.mean(-1) if by_row else f1


class SegmentationTest:
    """Pixel accuracy, mIoU, mAP and mF1 of one explanation method over all images that were given to `update`.

    f1_by_row: mF1 as the reference computes it (see `segmentation_f1`). Each image counts once, however many processes
    saw it.
    """

    def __init__(self, f1_by_row: bool = False):
        self.f1_by_row = f1_by_row
        self.scores = ImageScores()

    def update(self, image_ids: Sequence[int], relevance: Tensor, labels: Tensor) -> None:
        """Add images by their relevance (B, h, w) and labels (B, h, w) of 1 (object), 0 and -1 (unknown).

        An image of which no pixel is labelled is left out.
        """
        if relevance.shape != labels.shape:
            raise ValueError(f"relevance {tuple(relevance.shape)} and labels {tuple(labels.shape)} differ in shape")
        if strange := sorted(set(labels.unique().tolist()) - {UNKNOWN, 0, 1}):
            raise ValueError(f"labels hold {strange[:5]}, but must be 1 (object), 0 (background) or -1 (unknown)")
        if not relevance.isfinite().all():
            raise ValueError("the relevance holds NaN or infinite numbers")
        labelled = (labels != UNKNOWN).flatten(1).any(1)
        image_ids = [image for image, there in zip(image_ids, labelled.tolist(), strict=True) if there]
        relevance, labels = relevance[labelled], labels[labelled]
        if not image_ids:
            return
        mask = foreground(relevance)
        scores = segmentation_counts(mask, labels)
        scores["average_precision"] = segmentation_average_precision(relevance, labels)
        scores["f1"] = segmentation_f1(mask, labels, self.f1_by_row)
        self.scores.add(image_ids, scores)

    def compute(self) -> dict[str, float]:
        """pixel_accuracy and mIoU from the pixels of all images together, mAP and mF1 as means over images.

        A collective call where processes are many, and the same on each.
        """
        scores = self.scores.gathered()
        correct, labelled = scores["correct"].sum().double(), scores["labelled"].sum()
        intersection, union = scores["intersection"].sum(0).double(), scores["union"].sum(0)
        return {
            "pixel_accuracy": float(correct / labelled.clamp(min=1)),
            "mIoU": float((intersection / union.clamp(min=1)).mean()),
            "mAP": float(scores["average_precision"].double().mean()),
            "mF1": float(scores["f1"].double().mean()),
            "images": len(scores["f1"]),
        }
