"""How the learning rate runs."""

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def step_factor(epoch: int, lr_drop: int) -> float:
    """0.1^(epoch // lr_drop): the published schedule, one factor for a whole epoch."""
    return 0.1 ** (epoch // lr_drop)


def cosine_factor(step: int, total_steps: int, warmup_steps: int = 0, final: float = 0.0) -> float:
    """Linear from 0 to 1 over `warmup_steps`, then half a cosine down to `final` at `total_steps`."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def one_cycle_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Half a cosine from 1/25 up to 1 over `warmup_steps`, then half a cosine down to 1/250000 at the last step.

    The learning rate of torch's OneCycleLR with its default factors; momentum is left alone.
    """
    low, end = 1 / 25, 1 / 250_000
    if step < warmup_steps:
        return low + (1 - low) * 0.5 * (1 - math.cos(math.pi * step / warmup_steps))
    progress = min((step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1), 1.0)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))


def make_scheduler(optimizer: Optimizer, factor: Callable[[int], float]) -> LambdaLR:
    """Each group's rate = its first rate * factor(count), count = how often the scheduler was stepped."""
    return LambdaLR(optimizer, factor)


def use_new_rates(scheduler: LambdaLR, rates: Sequence[float]) -> None:
    """After a resume: the groups learn at `rates` * factor(count so far), whatever the checkpoint said.

    So the flags of the resuming run win, learning rates and schedule alike, as in the reference; the state of the
    optimiser (moments) stays the checkpoint's.
    """
    scheduler.base_lrs = list(rates)
    for group, rate, factor in zip(scheduler.optimizer.param_groups, rates, scheduler.lr_lambdas, strict=True):
        group["initial_lr"] = rate
        group["lr"] = rate * factor(scheduler.last_epoch)
