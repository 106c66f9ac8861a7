"""Which parameters learn at which rate."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer


def parameter_groups(
    net: nn.Module,
    lr: float = 2e-4,
    lr_backbone: float = 2e-5,
    lr_linear_proj_mult: float = 0.1,
    lr_backbone_names: Sequence[str] = ("backbone.0",),
    lr_linear_proj_names: Sequence[str] = ("reference_points", "sampling_offsets"),
) -> list[dict]:
    """Three optimiser groups by substring of the parameter's name: others, backbone, linear projections.

    Their rates are lr, lr_backbone and lr * lr_linear_proj_mult; frozen parameters are left out.
    ValueError: a name contains an entry of both lists.
    """
    groups = [
        {"params": [], "names": [], "lr": lr},
        {"params": [], "names": [], "lr": lr_backbone},
        {"params": [], "names": [], "lr": lr * lr_linear_proj_mult},
    ]
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        backbone = [part for part in lr_backbone_names if part in name]
        linear = [part for part in lr_linear_proj_names if part in name]
        if backbone and linear:
            raise ValueError(
                f"parameter {name!r} contains {backbone[0]!r} of lr_backbone_names and {linear[0]!r} of "
                "lr_linear_proj_names: it can learn at one rate only, so make one of the two names more specific"
            )
        group = groups[1 if backbone else 2 if linear else 0]
        group["params"].append(parameter)
        group["names"].append(name)
    return groups


def make_optimizer(
    groups: list[dict], optimizer: Literal["adamw", "sgd"], weight_decay: float = 1e-4, fused: bool = False
) -> Optimizer:
    """AdamW, or SGD with momentum 0.9; weight decay on every parameter, norms and biases too, as published.

    fused: the one-kernel update, several times faster on CPUs too; not under a gradient scaler (float16), where the
    update would unscale the gradients itself, after they were clipped.
    """
    groups = [{key: value for key, value in group.items() if key != "names"} for group in groups]
    if optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=fused)
    if optimizer == "sgd":
        return torch.optim.SGD(groups, lr=groups[0]["lr"], momentum=0.9, weight_decay=weight_decay, fused=fused)
    raise ValueError(f"optimizer={optimizer!r} is unknown: it must be 'adamw' or 'sgd'")
