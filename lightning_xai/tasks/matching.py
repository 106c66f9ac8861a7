"""Which query answers for which object: the assignment of least cost, in each image and each decoder layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

CACHED_COSTS = 2**16


def generalized_box_iou(boxes: Tensor, others: Tensor, dim: int = -1) -> Tensor:
    """Generalised intersection over union, IoU - (hull - union) / hull, of boxes paired by broadcasting.

    boxes, others: cxcywh along `dim`, which disappears from the result. In [-1, 1].
    Source: Rezatofighi et al. 2019, algorithm 1.
    """
    centre, size = boxes.split(2, dim)
    other_centre, other_size = others.split(2, dim)
    low, high = centre - size / 2, centre + size / 2
    other_low, other_high = other_centre - other_size / 2, other_centre + other_size / 2
    shared = torch.minimum(high, other_high) - torch.maximum(low, other_low)  # negative where apart
    hull = _area(size + other_size - shared, dim)
    overlap = _area(shared.clamp(min=0), dim)
    union = _area(size, dim) + _area(other_size, dim) - overlap
    return overlap / union + union / hull - 1


def _area(size: Tensor, dim: int) -> Tensor:
    return size.select(dim, 0) * size.select(dim, 1)


@dataclass(frozen=True)
class PackedTargets:
    """The objects of a batch, image after image, one tensor each.

    boxes: (T, 4) cxcywh in [0, 1]. labels: (T,). images: (T,) index of the image in the batch. counts: objects of each
    image.
    """

    boxes: Tensor
    labels: Tensor
    images: Tensor
    counts: tuple[int, ...]

    @classmethod
    def pack(cls, targets: Sequence[Mapping[str, Tensor]], device: torch.device, num_classes: int) -> "PackedTargets":
        """Join dictionaries with `boxes` (N, 4) and `labels` (N,); ValueError for a label that no logit stands for."""
        counts = tuple(len(target["labels"]) for target in targets)
        labels = torch.cat([target["labels"] for target in targets])
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            image = next(i for i, t in enumerate(targets) if ((t["labels"] < 0) | (t["labels"] >= num_classes)).any())
            given = targets[image]
            name = f"image_id {int(given['image_id'])}" if "image_id" in given else f"image {image} of the batch"
            raise ValueError(
                f"{name} has the labels {sorted(set(given['labels'].tolist()))}, but the network has num_classes="
                f"{num_classes}: labels must be in 0..{num_classes - 1}, so num_classes = largest label + 1"
            )
        boxes = torch.cat([target["boxes"] for target in targets]).float()
        images = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        return cls(boxes.to(device), labels.to(device), images.to(device), counts)

    def with_labels(self, labels: Tensor) -> "PackedTargets":
        return PackedTargets(self.boxes, labels, self.images, self.counts)


@dataclass(frozen=True)
class Matches:
    """Matched pairs of all layers and images: `index` (4, M) int64 on the CPU has the rows layer, image, query, target.

    target counts through the packed objects of the batch. Pairs are ordered by layer, image, query; each layer has the
    same number of pairs.
    """

    index: Tensor
    counts: tuple[int, ...]

    def of(self, layer: int, image: int) -> tuple[Tensor, Tensor]:
        """The queries and the objects of one image that belong together, ordered by query."""
        chosen = (self.index[0] == layer) & (self.index[1] == image)
        return self.index[2, chosen], self.index[3, chosen] - sum(self.counts[:image])


class HungarianMatcher:
    """One-to-one assignment of queries to the objects of their own image that costs least.

    cost = cost_bbox L1(cxcywh) + cost_class focal(p) - cost_giou GIoU with p = sigmoid(logit of the object's class),
    focal(p) = 0.25 (1-p)^2 (-log(p + 1e-8)) - 0.75 p^2 (-log(1-p + 1e-8)); the 0.25 is the reference's and does not
    follow the loss's focal_alpha. Costs are float32 under any precision.
    Source: Carion et al. 2020, eq. 1; Zhu et al. 2021, appendix A.3.
    """

    alpha = 0.25

    def __init__(self, cost_class: float = 2.0, cost_bbox: float = 5.0, cost_giou: float = 2.0):
        if cost_class == cost_bbox == cost_giou == 0:
            raise ValueError("cost_class, cost_bbox and cost_giou are all 0: at least one must be positive to match by")
        self.cost_class, self.cost_bbox, self.cost_giou = cost_class, cost_bbox, cost_giou

    @torch.no_grad()
    def cost(self, logits: Tensor, boxes: Tensor, targets: PackedTargets) -> Tensor:
        """(A, T, Q): what it costs that a query of an image answers for each object of that image.

        logits: (A, B, Q, K) of A layers. boxes: (A, B, Q, 4) cxcywh in [0, 1].
        """
        # on a CPU a few layers at a time, so that the intermediate tensors stay in its cache
        layers = len(logits)
        if logits.device.type == "cpu":
            layers = max(CACHED_COSTS // max(len(targets.labels) * logits.shape[2], 1), 1)
        with torch.autocast(logits.device.type, enabled=False):
            parts = zip(logits.split(layers), boxes.split(layers), strict=True)
            return torch.cat([self._cost(logit.float(), box.float(), targets) for logit, box in parts])

    def _cost(self, logits: Tensor, boxes: Tensor, targets: PackedTargets) -> Tensor:
        p = logits.transpose(-1, -2)[:, targets.images, targets.labels].sigmoid()  # (A, T, Q)
        q = 1 - p
        positive = q.square().mul_((p + 1e-8).log_())
        negative = p.square().mul_(q.add_(1e-8).log_())
        cost = negative.mul_((1 - self.alpha) * self.cost_class).sub_(positive, alpha=self.alpha * self.cost_class)
        predicted = boxes.permute(3, 0, 1, 2).contiguous().index_select(2, targets.images)  # (4, A, T, Q)
        wanted = targets.boxes.T[:, None, :, None]
        cost.add_((predicted - wanted).abs_().sum(0), alpha=self.cost_bbox)
        return cost.sub_(generalized_box_iou(predicted, wanted, dim=0), alpha=self.cost_giou)

    def __call__(self, logits: Tensor, boxes: Tensor, targets: PackedTargets) -> Matches:
        """Match all layers at once; see `match_all`."""
        return self.match_all([(logits, boxes, targets)])[0]

    def match_all(self, predictions: Sequence[tuple[Tensor, Tensor, PackedTargets]]) -> list[Matches]:
        """Match several stacks (logits (A, B, Q, K), boxes (A, B, Q, 4), targets) with one transfer to the CPU.

        FloatingPointError: a cost is not finite; it says which stack, layer, image and prediction.
        """
        costs = [self.cost(*prediction) for prediction in predictions]
        flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
        if not np.isfinite(flat).all():
            raise FloatingPointError(_not_finite(costs, predictions))
        ends = list(accumulate(cost.numel() for cost in costs))
        return [
            _assign(flat[end - cost.numel() : end].reshape(cost.shape), targets.counts)
            for cost, end, (_, _, targets) in zip(costs, ends, predictions, strict=True)
        ]


def _assign(costs: np.ndarray, counts: tuple[int, ...]) -> Matches:
    ends = list(accumulate(counts))
    parts = []
    for layer, cost in enumerate(costs):
        for image, (count, end) in enumerate(zip(counts, ends, strict=True)):
            if count == 0:
                continue
            target, query = linear_sum_assignment(cost[end - count : end])
            order = query.argsort()
            part = np.empty((4, len(query)), dtype=np.int64)
            part[0], part[1], part[2], part[3] = layer, image, query[order], target[order] + (end - count)
            parts.append(part)
    index = np.concatenate(parts, axis=1) if parts else np.empty((4, 0), dtype=np.int64)
    return Matches(torch.from_numpy(index), counts)


def _not_finite(costs: list[Tensor], predictions: Sequence[tuple[Tensor, Tensor, PackedTargets]]) -> str:
    stack = next(i for i, cost in enumerate(costs) if not cost.isfinite().all())
    logits, boxes, targets = predictions[stack]
    layer, target = (~costs[stack].isfinite()).any(-1).nonzero()[0].tolist()
    image = int(targets.images[target])
    parts = {"pred_boxes": boxes[layer, image], "pred_logits": logits[layer, image], "targets": targets.boxes}
    bad = [
        f"{name} ({int((~part.isfinite()).sum())} values)" for name, part in parts.items() if not part.isfinite().all()
    ]
    where = f"layer {layer} of {len(logits)}" + (f" of stack {stack}" if stack else "")
    return (
        f"cannot match: the cost of {where}, image {image} of the batch is not finite"
        f" because of NaN or infinity in {', '.join(bad) or 'boxes without area'}"
    )
