"""The assignment is the cheapest one, found without comparing a query with the objects of other images."""

from itertools import permutations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert
from torchvision.ops import generalized_box_iou as pairwise_giou

from lightning_xai.tasks.matching import HungarianMatcher, PackedTargets, generalized_box_iou


def random_problem(layers, queries, classes, counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, len(counts), queries, classes, generator=generator) * 2 - 1
    boxes = torch.rand(layers, len(counts), queries, 4, generator=generator) * 0.5 + 0.2
    targets = [
        {
            "boxes": torch.rand(count, 4, generator=generator) * 0.5 + 0.2,
            "labels": torch.randint(0, classes, (count,), generator=generator),
        }
        for count in counts
    ]
    return logits, boxes, targets


def all_against_all(logits, boxes, targets, weights=(2.0, 5.0, 2.0)):
    """Costs (B, Q, T) of one layer as published, every query against the objects of the whole batch."""
    p = logits.double().sigmoid()
    labels = torch.cat([target["labels"] for target in targets])
    truth = torch.cat([target["boxes"] for target in targets]).double()
    against = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
    corners = box_convert(boxes.double().flatten(0, 1), "cxcywh", "xyxy")
    giou = pairwise_giou(corners, box_convert(truth, "cxcywh", "xyxy")).view(*boxes.shape[:2], -1)
    l1 = torch.cdist(boxes.double().flatten(0, 1), truth, p=1).view(*boxes.shape[:2], -1)
    return weights[0] * against[..., labels] + weights[1] * l1 - weights[2] * giou


def pack(targets, classes):
    return PackedTargets.pack(targets, torch.device("cpu"), classes)


@pytest.mark.parametrize("counts", [(3, 5), (0, 4, 1), (7, 2), (0, 0)])
@pytest.mark.parametrize("weights", [(2.0, 5.0, 2.0), (1.0, 0.0, 3.0)])
def test_equals_all_against_all(counts, weights):
    logits, boxes, targets = random_problem(3, 6, 5, counts)
    matches = HungarianMatcher(*weights)(logits, boxes, pack(targets, 5))
    for layer in range(3):
        costs = all_against_all(logits[layer], boxes[layer], targets, weights).split(counts, -1)
        for image, cost in enumerate(costs):
            query, target = linear_sum_assignment(cost[image])
            found = matches.of(layer, image)
            assert found[0].tolist() == query.tolist()
            assert found[1].tolist() == target.tolist()


def test_costs_are_those_of_the_paper_whatever_the_size_of_the_stack(monkeypatch):
    logits, boxes, targets = random_problem(4, 9, 5, (3, 2))
    expected = torch.stack(
        [
            torch.cat([cost[image].T for image, cost in enumerate(layer.split((3, 2), -1))])
            for layer in (all_against_all(lo, b, targets) for lo, b in zip(logits, boxes, strict=True))
        ]
    )
    for cached in (1, 100, 10**6):
        monkeypatch.setattr("lightning_xai.tasks.matching.CACHED_COSTS", cached)
        cost = HungarianMatcher().cost(logits, boxes, pack(targets, 5))
        torch.testing.assert_close(cost.double(), expected, atol=1e-5, rtol=1e-5)


def test_no_permutation_is_cheaper():
    logits, boxes, targets = random_problem(1, 5, 3, (4,), seed=3)
    cost = all_against_all(logits[0], boxes[0], targets)[0]
    query, target = HungarianMatcher()(logits, boxes, pack(targets, 3)).of(0, 0)
    cheapest = min(sum(cost[q, t] for t, q in enumerate(chosen)) for chosen in permutations(range(5), 4))
    assert cost[query, target].sum() == pytest.approx(float(cheapest))


def test_more_targets_than_queries_matches_every_query_once():
    logits, boxes, targets = random_problem(2, 3, 4, (8, 1))
    matches = HungarianMatcher()(logits, boxes, pack(targets, 4))
    query, target = matches.of(1, 0)
    assert query.tolist() == [0, 1, 2]
    assert len(set(target.tolist())) == 3 and max(target.tolist()) < 8
    assert matches.of(1, 1)[1].tolist() == [0]
    assert matches.index.shape == (4, 2 * (3 + 1))


def test_giou_known_answers():
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    others = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2], [0.9, 0.5, 0.2, 0.2]])
    # the same; half overlapping: 1/3, hull = union; apart: hull 0.6 x 0.2, union two thirds of it
    torch.testing.assert_close(generalized_box_iou(box, others), torch.tensor([1.0, 1 / 3, -1 / 3]))


@pytest.mark.parametrize("part", ["pred_boxes", "pred_logits"])
def test_not_finite_predictions_are_named(part):
    logits, boxes, targets = random_problem(3, 6, 5, (2, 2))
    (boxes if part == "pred_boxes" else logits)[1, 1, 4] = torch.nan
    with pytest.raises(FloatingPointError, match=rf"layer 1 of 3, image 1 of the batch .* {part}"):
        HungarianMatcher()(logits, boxes, pack(targets, 5))


def test_label_without_logit_is_named():
    _, _, targets = random_problem(1, 6, 5, (2, 2))
    targets[1] |= {"labels": torch.tensor([0, 7]), "image_id": torch.tensor(139)}
    with pytest.raises(ValueError, match=r"image_id 139 .*\[0, 7\].*num_classes=5.*0\.\.4"):
        pack(targets, 5)


def test_half_precision_predictions_are_matched_in_float32():
    logits, boxes, targets = random_problem(1, 6, 5, (3,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = HungarianMatcher().cost(logits.bfloat16(), boxes.bfloat16(), pack(targets, 5))
    assert cost.dtype == torch.float32
    expected = HungarianMatcher().cost(logits.bfloat16().float(), boxes.bfloat16().float(), pack(targets, 5))
    torch.testing.assert_close(cost, expected)


def test_all_costs_zero_is_refused():
    with pytest.raises(ValueError, match="at least one must be positive"):
        HungarianMatcher(0, 0, 0)
