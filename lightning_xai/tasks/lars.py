"""The optimiser of MAE's linear probe."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """SGD with momentum whose steps on matrices are as long as a share of the matrix.

    Matrices: g <- (g + wd p) * trust * |p| / |g + wd p|, the factor being 1 where either norm is 0; vectors (biases,
    norms): g as it is, without decay. Then m <- momentum m + g and p <- p - lr m.
    timm's Lars divides by |g| + wd |p| instead, which is the same only without decay.
    Source: You et al. 2017, arXiv 1708.03888, as MAE and MoCo v3 have it.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ):
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("trust_coefficient", trust_coefficient)):
            if value < 0:
                raise ValueError(f"{name}={value} must be at least 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be at least 0 and below 1")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure`, which computes the gradients, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                step = parameter.grad
                if parameter.ndim > 1:
                    step = step.add(parameter, alpha=group["weight_decay"])
                    step = step * trust_ratio(parameter, step, group["trust_coefficient"])
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].mul_(group["momentum"]).add_(step)
                parameter.add_(state["momentum"], alpha=-group["lr"])
        return loss


def trust_ratio(parameter: Tensor, step: Tensor, trust_coefficient: float) -> Tensor:
    """trust_coefficient * |parameter| / |step|, and 1 where either norm is 0."""
    length, change = parameter.norm(), step.norm()
    return torch.where((length > 0) & (change > 0), trust_coefficient * length / change, 1.0)
