"""Schedules against torch's own, and which flags win after a resume."""

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from lightning_xai.tasks import lr_schedule


def optimizer(*rates):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates])


def run(own, scheduler, steps):
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in own.param_groups])
        own.step()
        scheduler.step()
    return torch.tensor(rates)


def test_step_is_torchs_step():
    ours, theirs = optimizer(0.2, 0.02), optimizer(0.2, 0.02)
    found = run(ours, lr_schedule.make_scheduler(ours, lambda epoch: lr_schedule.step_factor(epoch, 3)), 10)
    torch.testing.assert_close(found, run(theirs, StepLR(theirs, 3, 0.1), 10))


def test_one_cycle_is_torchs_one_cycle():
    ours, theirs = optimizer(0.2), optimizer(0.2)
    total, rise = 50, 14  # torch's peak is at 0.3 * 50 - 1
    found = run(ours, lr_schedule.make_scheduler(ours, lambda s: lr_schedule.one_cycle_factor(s, total, rise)), total)
    cycle = OneCycleLR(theirs, 0.2, total_steps=total, pct_start=0.3, cycle_momentum=False)
    rates = []
    for step in range(total):
        rates.append([theirs.param_groups[0]["lr"]])
        theirs.step()
        if step < total - 1:
            cycle.step()
    torch.testing.assert_close(found, torch.tensor(rates))


def test_cosine_rises_linearly_and_ends_at_its_floor():
    factors = [lr_schedule.cosine_factor(step, 20, 4, final=0.1) for step in range(22)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[12] == pytest.approx(0.55)  # half way down
    assert factors[20:] == pytest.approx([0.1, 0.1])
    assert factors[4:] == sorted(factors[4:], reverse=True)


def test_new_rates_and_schedule_win_after_a_resume():
    old = optimizer(0.2, 0.02)
    scheduler = lr_schedule.make_scheduler(old, lambda epoch: lr_schedule.step_factor(epoch, 40))
    run(old, scheduler, 6)
    new = optimizer(0.4, 0.01)
    resumed = lr_schedule.make_scheduler(new, lambda epoch: lr_schedule.step_factor(epoch, 4))
    new.load_state_dict(old.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    lr_schedule.use_new_rates(resumed, [0.4, 0.01])
    expected = torch.tensor([[0.04, 0.001]] * 2 + [[0.004, 0.0001]] * 2)  # epochs 6, 7, then 8, 9
    torch.testing.assert_close(run(new, resumed, 4), expected)
