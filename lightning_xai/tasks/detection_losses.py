"""What a set of predicted boxes costs against the true ones: focal, L1, GIoU and mask losses of all layers at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lightning_xai.tasks.matching import HungarianMatcher, Matches, PackedTargets, generalized_box_iou


@dataclass(frozen=True)
class Losses:
    """Named loss values: `values` (n,) unweighted, `weights` (n,) of the sum that is minimised (0 = only logged)."""

    names: tuple[str, ...]
    values: Tensor
    weights: Tensor

    @property
    def total(self) -> Tensor:
        return self.values @ self.weights

    def as_dict(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.values, strict=True))


def sigmoid_focal_loss(logits: Tensor, positive: Tensor, alpha: float) -> Tensor:
    """Focal loss alpha_t (1 - p_t)^2 (-log p_t) of each logit, gamma = 2.

    positive: where the truth is 1; alpha: weight of these, 1 - alpha that of the others.
    Source: Lin et al. 2017, eq. 5.
    """
    sign = 1 - 2 * positive.to(logits.dtype)
    against = logits * sign  # sigmoid(against) = 1 - p_t and softplus(against) = -log p_t
    return (0.5 + (0.5 - alpha) * sign) * against.sigmoid().square() * F.softplus(against)


def mean_boxes(targets: PackedTargets) -> Tensor | float:
    """Objects in the batch, averaged over all processes, at least 1. A collective call where processes are many."""
    count = sum(targets.counts)
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return max(float(count), 1.0)
    boxes = torch.tensor(float(count), device=targets.boxes.device)
    dist.all_reduce(boxes)
    return (boxes / dist.get_world_size()).clamp(min=1)


class SetCriterion:
    """The losses of Deformable DETR: match each layer's queries to the objects, then compare the matched pairs.

    loss_ce = sum focal(logit, one-hot) / n, loss_bbox = sum |box - target|_1 / n, loss_giou = sum (1 - GIoU) / n with
    n = objects of the batch averaged over processes; with `pred_masks` also loss_mask (focal, mean over pixels) and
    loss_dice. Logged only: cardinality_error (the reference's; it takes the last class for background, so it says
    little here) and class_error (percent, last layer). Suffix `_i` marks intermediate layer i, `_enc` the encoder's
    proposals, which are trained as one class, label 0. All in float32. Source: Zhu et al. 2021, section 4 and A.3.
    """

    mask_alpha = 0.25

    def __init__(
        self,
        matcher: HungarianMatcher,
        loss_class: float = 2.0,
        loss_bbox: float = 5.0,
        loss_giou: float = 2.0,
        loss_mask: float = 1.0,
        loss_dice: float = 1.0,
        focal_alpha: float = 0.25,
    ):
        self.matcher = matcher
        self.focal_alpha = focal_alpha
        self.weight_of = {
            "loss_ce": loss_class,
            "loss_bbox": loss_bbox,
            "loss_giou": loss_giou,
            "cardinality_error": 0.0,
            "class_error": 0.0,
            "loss_mask": loss_mask,
            "loss_dice": loss_dice,
        }
        self._cached: dict[tuple, tuple[tuple[str, ...], Tensor]] = {}

    def __call__(
        self, outputs: Mapping, targets: Sequence[Mapping[str, Tensor]], average_over_processes: bool = True
    ) -> Losses:
        """Losses of a network's outputs against `targets`: per image `boxes` (N, 4) cxcywh in [0, 1], `labels` (N,).

        outputs: pred_logits (B, Q, K), pred_boxes (B, Q, 4), and where present aux_outputs, enc_outputs, pred_masks
        (B, Q, h, w; then targets have `masks` (N, h, w)). average_over_processes makes this a collective call.
        FloatingPointError: predictions are not finite, so that nothing can be matched.
        """
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            return self._losses(outputs, targets, average_over_processes)

    def _losses(self, outputs: Mapping, targets: Sequence[Mapping[str, Tensor]], average: bool) -> Losses:
        aux = outputs.get("aux_outputs") or []
        logits = torch.stack([layer["pred_logits"].float() for layer in (*aux, outputs)])  # (A, B, Q, K), last is last
        boxes = torch.stack([layer["pred_boxes"].float() for layer in (*aux, outputs)])
        packed = PackedTargets.pack(targets, logits.device, logits.shape[-1])
        count = mean_boxes(packed) if average else max(float(sum(packed.counts)), 1.0)

        stacks = [(logits, boxes, packed)]
        if outputs.get("enc_outputs"):
            proposals = outputs["enc_outputs"]
            one_class = packed.with_labels(torch.zeros_like(packed.labels))
            stacks.append((proposals["pred_logits"].float()[None], proposals["pred_boxes"].float()[None], one_class))
        matches = self.matcher.match_all(stacks)

        on_device = [m.index.to(logits.device, non_blocking=True) for m in matches]
        values = [self._stack_losses(*stacks[0], on_device[0], count), _class_error(logits, packed, on_device[0])]
        if len(stacks) == 2:
            values.append(self._stack_losses(*stacks[1], on_device[1], count))
        if "pred_masks" in outputs:
            values.append(self._mask_losses(outputs["pred_masks"].float(), targets, matches[0], len(aux), count))
        names, weights = self._names(len(aux), len(stacks) == 2, "pred_masks" in outputs, logits.device)
        return Losses(names, torch.cat(values), weights)

    def _stack_losses(
        self, logits: Tensor, boxes: Tensor, targets: PackedTargets, index: Tensor, count: Tensor | float
    ) -> Tensor:
        """(4A,): class, box, GIoU losses and cardinality error of A layers."""
        layers = len(logits)
        layer, image, query, target = index
        positive = torch.zeros_like(logits, dtype=torch.bool)
        positive[layer, image, query, targets.labels[target]] = True
        ce = sigmoid_focal_loss(logits, positive, self.focal_alpha).flatten(1).sum(1)

        matched, wanted = boxes[layer, image, query], targets.boxes[target]  # (A m, 4)
        bbox = (matched - wanted).abs().view(layers, -1).sum(1)
        giou = (1 - generalized_box_iou(matched, wanted)).view(layers, -1).sum(1)

        with torch.no_grad():
            objects = torch.tensor(targets.counts, device=logits.device)
            found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(-1)  # (A, B)
            cardinality = (found - objects).abs().float().mean(-1)
        return torch.cat([torch.cat([ce, bbox, giou]) / count, cardinality])

    def _mask_losses(
        self,
        masks: Tensor,
        targets: Sequence[Mapping[str, Tensor]],
        matches: Matches,
        last: int,
        count: Tensor | float,
    ) -> Tensor:
        """(2,): focal and dice loss of the last layer's masks; targets are padded to the largest, padding counts."""
        height = max(target["masks"].shape[-2] for target in targets)
        width = max(target["masks"].shape[-1] for target in targets)
        wanted, predicted = [], []
        for image, target in enumerate(targets):
            query, chosen = matches.of(last, image)
            true = target["masks"][chosen.to(target["masks"].device)].to(masks)
            wanted.append(F.pad(true, (0, width - true.shape[-1], 0, height - true.shape[-2])))
            predicted.append(masks[image, query.to(masks.device)])
        true = torch.cat(wanted).flatten(1)
        logits = F.interpolate(torch.cat(predicted)[:, None], (height, width), mode="bilinear").flatten(1)
        focal = sigmoid_focal_loss(logits, true > 0.5, self.mask_alpha).mean(1).sum()
        p = logits.sigmoid()
        dice = (1 - (2 * (p * true).sum(1) + 1) / (p.sum(1) + true.sum(1) + 1)).sum()
        return torch.stack([focal, dice]) / count

    def _names(self, aux: int, proposals: bool, masks: bool, device: torch.device) -> tuple[tuple[str, ...], Tensor]:
        key = (aux, proposals, masks, device)
        if key not in self._cached:
            kinds = ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error")
            suffixes = [f"_{i}" for i in range(aux)] + [""]
            names = [(kind, suffix) for kind in kinds for suffix in suffixes] + [("class_error", "")]
            names += [(kind, "_enc") for kind in kinds] if proposals else []
            names += [("loss_mask", ""), ("loss_dice", "")] if masks else []
            weights = torch.tensor([self.weight_of[kind] for kind, _ in names], device=device)
            self._cached[key] = (tuple(kind + suffix for kind, suffix in names), weights)
        return self._cached[key]


@torch.no_grad()
def _class_error(logits: Tensor, targets: PackedTargets, index: Tensor) -> Tensor:
    """(1,): percent of the last layer's matched queries whose largest logit is of another class; 100 without any."""
    matched = index.shape[1] // len(logits)
    if matched == 0:
        return logits.new_full((1,), 100.0)
    layer, image, query, target = index[:, -matched:]
    right = logits[layer, image, query].argmax(-1) == targets.labels[target]
    return 100 - 100 * right.float().mean(0, keepdim=True)
