"""One process alone; that all of several stop together is tested in test_detection.py."""

from types import SimpleNamespace

import pytest
import torch

from lightning_xai.tasks.not_finite import stop_unless_finite

MODULE = SimpleNamespace(trainer=SimpleNamespace(world_size=1), global_rank=0, current_epoch=2, global_step=31)


def test_a_finite_loss_asks_nothing():
    stop_unless_finite(MODULE, torch.tensor(1.0, requires_grad=True), [4], pytest.fail, 5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_culprit_is_named(value):
    words = r"epoch 2, batch 5, step 31: process 0, image ids \[4, 9\]: loss_ce\. The checkpoints so far are good"
    with pytest.raises(FloatingPointError, match=words):
        stop_unless_finite(MODULE, torch.tensor(value), [4, 9], lambda: "loss_ce", 5)
