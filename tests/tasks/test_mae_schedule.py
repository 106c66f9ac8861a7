"""Rates of MAE's recipes at points where they are known."""

import math

import pytest

from lightning_xai.tasks.mae_schedule import rate_at, scaled_rate


def test_the_published_batch_has_four_times_the_base_rate():
    assert scaled_rate(5e-4, 4 * 64 * 4) == pytest.approx(2e-3)


def test_rates_at_known_epochs():
    def at(epoch):
        return rate_at(epoch, lr=1.0, min_lr=0.1, warmup_epochs=5, epochs=25)

    assert at(0) == 0.0 and at(2.5) == 0.5
    assert at(5) == pytest.approx(1.0) and at(15) == pytest.approx(0.55) and at(25) == pytest.approx(0.1)
    assert at(10) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5)))


def test_no_warm_up_starts_at_the_top():
    assert rate_at(0, lr=2.0, min_lr=0.0, warmup_epochs=0, epochs=1) == 2.0
