"""Means over steps, weighted and not, under the original log's names."""

import pytest
import torch

from lightning_xai.tasks.detection_losses import Losses
from lightning_xai.tasks.loss_means import LossMeans, not_finite


def losses(*values):
    names = ("loss_ce", "loss_bbox_0", "cardinality_error", "class_error")
    return Losses(names, torch.tensor(values, requires_grad=True), torch.tensor([2.0, 5.0, 0.0, 0.0]))


def test_epoch_and_recent_means():
    means = LossMeans()
    means.add(losses(1.0, 2.0, 3.0, 50.0))
    means.add(losses(3.0, 4.0, 5.0, 100.0))
    assert means.recent()["loss"] == pytest.approx(2 * 2 + 5 * 3)
    means.add(losses(5.0, 0.0, 1.0, 0.0))
    recent = means.recent()
    assert (recent["loss_ce"], recent["loss_ce_unscaled"]) == (10, 5)
    assert means.epoch() == pytest.approx(
        {
            "loss": 2 * 3 + 5 * 2,
            "loss_ce": 6,
            "loss_ce_unscaled": 3,
            "loss_bbox_0": 10,
            "loss_bbox_0_unscaled": 2,
            "cardinality_error_unscaled": 3,
            "class_error": 50,
            "class_error_unscaled": 50,
        }
    )
    means.reset()
    assert means.epoch() == {}


def test_the_running_sum_does_not_change_or_keep_the_graph_of_the_losses():
    means, first = LossMeans(), losses(1.0, 2.0, 3.0, 4.0)
    means.add(first)
    means.add(losses(1.0, 1.0, 1.0, 1.0))
    assert first.values.tolist() == [1, 2, 3, 4]
    assert not means._sums.requires_grad


def test_not_finite_losses_are_named():
    assert not_finite(losses(1.0, torch.nan, torch.inf, 2.0)) == "loss_bbox_0, cardinality_error"
