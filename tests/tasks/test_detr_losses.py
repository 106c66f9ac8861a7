"""DETR's losses are those of a plain loop over layers and images."""

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert, generalized_box_iou

from lightning_xai.tasks.detr_losses import SoftmaxMatcher, SoftmaxSetCriterion


def random_outputs(layers, counts, queries=7, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = len(counts)

    def layer():
        return {
            "pred_logits": (torch.randn(batch, queries, classes + 1, generator=generator) * 2).requires_grad_(),
            "pred_boxes": (torch.rand(batch, queries, 4, generator=generator) * 0.5 + 0.2).requires_grad_(),
        }

    targets = [
        {
            "boxes": torch.rand(count, 4, generator=generator) * 0.5 + 0.2,
            "labels": torch.randint(0, classes, (count,), generator=generator),
        }
        for count in counts
    ]
    return {**layer(), "aux_outputs": [layer() for _ in range(layers - 1)]}, targets


def one_layer(layer, targets, suffix):
    """Losses as the paper states them, image by image."""
    logits, boxes = layer["pred_logits"], layer["pred_boxes"]
    background = logits.shape[-1] - 1
    count = max(sum(len(target["labels"]) for target in targets), 1)
    classes = torch.full(logits.shape[:2], background)
    bbox = giou = torch.zeros(())
    cardinality = 0.0
    for image, target in enumerate(targets):
        truth, own = (box_convert(b, "cxcywh", "xyxy") for b in (target["boxes"], boxes[image]))
        cost = 5 * torch.cdist(boxes[image], target["boxes"], p=1) - logits[image].softmax(-1)[:, target["labels"]]
        cost = cost - 2 * generalized_box_iou(own, truth)
        queries, objects = linear_sum_assignment(cost.detach())
        classes[image, queries] = target["labels"][objects]
        bbox = bbox + (boxes[image, queries] - target["boxes"][objects]).abs().sum()
        giou = giou + (1 - generalized_box_iou(own[queries], truth[objects]).diag()).sum()
        found = int((logits[image].argmax(1) != background).sum())
        cardinality += abs(found - len(target["labels"])) / len(targets)
    weight = torch.ones(background + 1)
    weight[-1] = 0.1
    ce = F.cross_entropy(logits.transpose(1, 2), classes, weight)
    values = {"loss_ce": ce, "loss_bbox": bbox / count, "loss_giou": giou / count, "cardinality_error": cardinality}
    return {name + suffix: value for name, value in values.items()}


@pytest.mark.parametrize("counts", [(2, 3), (0, 4), (0, 0), (1,)])
def test_values_and_gradients_of_all_layers(counts):
    outputs, targets = random_outputs(3, counts)
    losses = SoftmaxSetCriterion()(outputs, targets)
    expected = one_layer(outputs, targets, "")
    for i, layer in enumerate(outputs["aux_outputs"]):
        expected |= one_layer(layer, targets, f"_{i}")
    found = losses.as_dict()
    for name, value in expected.items():
        assert float(found[name].detach()) == pytest.approx(
            float(torch.as_tensor(value).detach()), rel=1e-5, abs=1e-6
        ), name
    assert set(found) == set(expected) | {"class_error"}

    total = sum(
        {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}.get(name.rstrip("_01"), 0) * value
        for name, value in expected.items()
    )
    leaves = [outputs["pred_logits"], outputs["aux_outputs"][1]["pred_logits"]]
    for ours, theirs in zip(torch.autograd.grad(losses.total, leaves), torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_matching_asks_for_the_softmax_probability():
    """By sigmoid both queries look alike; by softmax only the second one is of class 0."""
    logits = torch.tensor([[[[4.0, 8.0, 0.0], [4.0, 0.0, 0.0]]]])
    boxes = torch.full((1, 1, 2, 4), 0.5)
    targets = [{"boxes": torch.full((1, 4), 0.5), "labels": torch.tensor([0])}]
    losses = SoftmaxSetCriterion(SoftmaxMatcher())({"pred_logits": logits[0], "pred_boxes": boxes[0]}, targets)
    assert losses.as_dict()["class_error"] == 0


def test_the_label_of_no_object_is_refused():
    outputs, targets = random_outputs(1, (1,))
    targets[0]["labels"][:] = 5
    with pytest.raises(ValueError, match=r"num_classes=5: labels must be in 0\.\.4"):
        SoftmaxSetCriterion()(outputs, targets)
