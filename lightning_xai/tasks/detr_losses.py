"""DETR's own losses: classes compete in a softmax with "no object", and the matching asks for their probability."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_xai.tasks.detection_losses import Losses, SetCriterion
from lightning_xai.tasks.matching import HungarianMatcher, PackedTargets, generalized_box_iou


class SoftmaxMatcher(HungarianMatcher):
    """One-to-one assignment of queries to the objects of their own image that costs least.

    cost = cost_bbox L1(cxcywh) - cost_class p - cost_giou GIoU with p = softmax(logits) of the object's class.
    Source: Carion et al. 2020, eq. 1 and section 3.1.
    """

    def __init__(self, cost_class: float = 1.0, cost_bbox: float = 5.0, cost_giou: float = 2.0):
        super().__init__(cost_class, cost_bbox, cost_giou)

    def _cost(self, logits: Tensor, boxes: Tensor, targets: PackedTargets) -> Tensor:
        p = logits.softmax(-1).transpose(-1, -2)[:, targets.images, targets.labels]  # (A, T, Q)
        predicted = boxes.permute(3, 0, 1, 2).contiguous().index_select(2, targets.images)  # (4, A, T, Q)
        wanted = targets.boxes.T[:, None, :, None]
        distance = (predicted - wanted).abs().sum(0)
        overlap = generalized_box_iou(predicted, wanted, dim=0)
        return self.cost_bbox * distance - self.cost_class * p - self.cost_giou * overlap


class SoftmaxSetCriterion(SetCriterion):
    """The losses of DETR: match each layer's queries to the objects, then compare the matched pairs.

    loss_ce = sum_q w(c_q) (-log softmax(logits_q)[c_q]) / sum_q w(c_q), where c_q is the class of the query's object or
    no object, whose weight w is no_object_weight instead of 1; the other losses and their names as in `SetCriterion`.
    cardinality_error counts the queries whose largest logit is an object's.
    Source: Carion et al. 2020, section 3.1 and A.2.
    """

    def __init__(
        self,
        matcher: HungarianMatcher | None = None,
        loss_class: float = 1.0,
        loss_bbox: float = 5.0,
        loss_giou: float = 2.0,
        loss_mask: float = 1.0,
        loss_dice: float = 1.0,
        no_object_weight: float = 0.1,
    ):
        super().__init__(matcher or SoftmaxMatcher(), loss_class, loss_bbox, loss_giou, loss_mask, loss_dice)
        self.no_object_weight = no_object_weight

    def _losses(self, outputs: Mapping, targets: Sequence[Mapping[str, Tensor]], average: bool) -> Losses:
        classes = outputs["pred_logits"].shape[-1] - 1
        PackedTargets.pack(targets, outputs["pred_logits"].device, classes)  # the last logit stands for no label
        return super()._losses(outputs, targets, average)

    def _stack_losses(
        self, logits: Tensor, boxes: Tensor, targets: PackedTargets, index: Tensor, count: Tensor | float
    ) -> Tensor:
        """(4A,): class, box, GIoU losses and cardinality error of A layers."""
        layers, no_object = len(logits), logits.shape[-1] - 1
        layer, image, query, target = index
        classes = logits.new_full(logits.shape[:-1], no_object, dtype=torch.int64)
        classes[layer, image, query] = targets.labels[target]
        weights = torch.where(classes == no_object, self.no_object_weight, 1.0).to(logits.dtype)
        surprise = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), reduction="none").view_as(weights)
        ce = (weights * surprise).flatten(1).sum(1) / weights.flatten(1).sum(1)

        matched, wanted = boxes[layer, image, query], targets.boxes[target]  # (A m, 4)
        bbox = (matched - wanted).abs().view(layers, -1).sum(1) / count
        giou = (1 - generalized_box_iou(matched, wanted)).view(layers, -1).sum(1) / count

        with torch.no_grad():
            objects = torch.tensor(targets.counts, device=logits.device)
            found = (logits.argmax(-1) != no_object).sum(-1)  # (A, B)
            cardinality = (found - objects).abs().float().mean(-1)
        return torch.cat([ce, bbox, giou, cardinality])
