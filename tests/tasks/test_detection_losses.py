"""All layers' losses at once are those of a plain loop over layers and images."""

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert, generalized_box_iou
from torchvision.ops import sigmoid_focal_loss as torchvision_focal

from lightning_xai.tasks.detection_losses import SetCriterion, sigmoid_focal_loss
from lightning_xai.tasks.matching import HungarianMatcher


def random_outputs(layers, counts, queries=7, classes=5, proposals=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = len(counts)

    def layer(tokens):
        return {
            "pred_logits": (torch.randn(batch, tokens, classes, generator=generator) * 2 - 1).requires_grad_(),
            "pred_boxes": (torch.rand(batch, tokens, 4, generator=generator) * 0.5 + 0.2).requires_grad_(),
        }

    outputs = {**layer(queries), "aux_outputs": [layer(queries) for _ in range(layers - 1)]}
    if proposals:
        outputs["enc_outputs"] = layer(proposals)
    targets = [
        {
            "boxes": torch.rand(count, 4, generator=generator) * 0.5 + 0.2,
            "labels": torch.randint(0, classes, (count,), generator=generator),
        }
        for count in counts
    ]
    return outputs, targets


def one_layer(layer, targets, suffix, alpha):
    """Losses as the papers state them, image by image."""
    logits, boxes = layer["pred_logits"], layer["pred_boxes"]
    count = max(sum(len(target["labels"]) for target in targets), 1)
    ce = bbox = giou = torch.zeros(())
    right = total = 0
    cardinality = 0.0
    for image, target in enumerate(targets):
        p = logits[image].detach().sigmoid()
        truth = box_convert(target["boxes"], "cxcywh", "xyxy")
        own = box_convert(boxes[image], "cxcywh", "xyxy")
        focal = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
        cost = 2 * focal[:, target["labels"]] + 5 * torch.cdist(boxes[image], target["boxes"], p=1)
        cost = cost - 2 * generalized_box_iou(own, truth)
        queries, objects = linear_sum_assignment(cost.detach())
        onehot = torch.zeros_like(p)
        onehot[queries, target["labels"][objects]] = 1
        ce = ce + torchvision_focal(logits[image], onehot, alpha=alpha, gamma=2, reduction="sum")
        bbox = bbox + (boxes[image, queries] - target["boxes"][objects]).abs().sum()
        giou = giou + (1 - generalized_box_iou(own[queries], truth[objects]).diag()).sum()
        right += int((p[queries].argmax(1) == target["labels"][objects]).sum())
        total += len(queries)
        cardinality += abs(int((p.argmax(1) != p.shape[1] - 1).sum()) - len(target["labels"])) / len(targets)
    losses = {"loss_ce": ce / count, "loss_bbox": bbox / count, "loss_giou": giou / count}
    losses["cardinality_error"] = torch.tensor(cardinality)
    losses = {name + suffix: value for name, value in losses.items()}
    if suffix == "":
        losses["class_error"] = torch.tensor(100 - 100 * right / total if total else 100.0)
    return losses


@pytest.mark.parametrize("counts", [(3, 2), (0, 4, 1), (0, 0), (9, 1)])
@pytest.mark.parametrize("layers, proposals", [(1, 0), (3, 0), (2, 11)])
def test_equals_a_loop_over_layers(counts, layers, proposals):
    alpha = 0.4
    outputs, targets = random_outputs(layers, counts, proposals=proposals)
    losses = SetCriterion(HungarianMatcher(), focal_alpha=alpha)(outputs, targets)

    expected = one_layer(outputs, targets, "", alpha)
    for i, layer in enumerate(outputs["aux_outputs"]):
        expected |= one_layer(layer, targets, f"_{i}", alpha)
    if proposals:
        one_class = [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]
        expected |= one_layer(outputs["enc_outputs"], one_class, "_enc", alpha)
    found = losses.as_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)

    weight = {"loss_ce": 2, "loss_bbox": 5, "loss_giou": 2}
    total = sum(weight.get("_".join(name.split("_")[:2]), 0) * value for name, value in expected.items())
    torch.testing.assert_close(losses.total, total, rtol=1e-5, atol=1e-5)
    leaves = [layer[name] for layer in (outputs, *outputs["aux_outputs"]) for name in ("pred_logits", "pred_boxes")]
    ours = torch.autograd.grad(losses.total, leaves)
    theirs = torch.autograd.grad(total, leaves, allow_unused=True)
    for own, other in zip(ours, theirs, strict=True):
        other = torch.zeros_like(own) if other is None else other
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_focal_loss_is_torchvisions_also_where_the_sigmoid_saturates():
    logits = torch.tensor([-100.0, -30, -1, 0, 2, 30, 100]).repeat(2, 1).requires_grad_()
    positive = torch.tensor([[True], [False]]).expand(2, 7)
    ours = sigmoid_focal_loss(logits, positive, alpha=0.3)
    theirs = torchvision_focal(logits, positive.float(), alpha=0.3, gamma=2)
    torch.testing.assert_close(ours, theirs)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(theirs.sum(), logits)[0])


def test_mask_losses_pad_targets_to_the_largest():
    outputs, targets = random_outputs(1, (1, 2), queries=3)
    outputs["pred_masks"] = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(5)).requires_grad_()
    for target, (h, w) in zip(targets, ((8, 6), (5, 10)), strict=True):
        target["masks"] = torch.rand(len(target["labels"]), h, w) > 0.5
    found = SetCriterion(HungarianMatcher(), focal_alpha=0.6)(outputs, targets).as_dict()
    focal = dice = 0.0
    for image, target in enumerate(targets):
        p = outputs["pred_logits"][image].sigmoid()
        cost = 2 * (0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log())[:, target["labels"]]
        corners = [box_convert(b, "cxcywh", "xyxy") for b in (outputs["pred_boxes"][image], target["boxes"])]
        cost = cost - 2 * generalized_box_iou(*corners)
        cost = (cost + 5 * torch.cdist(outputs["pred_boxes"][image], target["boxes"], p=1)).detach()
        for query, number in zip(*linear_sum_assignment(cost), strict=True):
            true = torch.zeros(8, 10)
            mask = target["masks"][number]
            true[: mask.shape[0], : mask.shape[1]] = mask.float()
            logit = F.interpolate(outputs["pred_masks"][image, query][None, None], (8, 10), mode="bilinear")[0, 0]
            focal += torchvision_focal(logit, true, alpha=0.25, gamma=2, reduction="mean")
            p = logit.sigmoid()
            dice += 1 - (2 * (p * true).sum() + 1) / (p.sum() + true.sum() + 1)
    torch.testing.assert_close(found["loss_mask"], focal / 3)
    torch.testing.assert_close(found["loss_dice"], dice / 3)


def test_losses_are_float32_under_autocast():
    outputs, targets = random_outputs(2, (2, 1))
    half = {n: t.detach().bfloat16() for n, t in outputs.items() if n != "aux_outputs"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = SetCriterion(HungarianMatcher())(half, targets)
    assert losses.values.dtype == torch.float32 and losses.total.dtype == torch.float32


def test_one_class_network():
    outputs, targets = random_outputs(2, (2, 1), classes=1)
    losses = SetCriterion(HungarianMatcher())(outputs, targets).as_dict()
    assert losses["class_error"] == 0
    assert losses["cardinality_error"] == 1.5  # the only class counts as background there
