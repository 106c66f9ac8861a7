"""Parameter groups of MAE's recipes: which weights decay, and how much slower the early layers learn."""

import re
from collections.abc import Iterable

from torch import nn

# embeddings and tokens of timm and of transformers, which do not decay although they are no vectors
TOKENS = {"pos_embed", "cls_token", "dist_token", "reg_token"}
TOKENS |= {"position_embeddings", "distillation_token", "register_tokens"}


def layer_decay_groups(
    net: nn.Module, blocks: Iterable[str], layer_decay: float = 0.75, weight_decay: float = 0.05
) -> list[dict]:
    """One optimiser group for each layer and kind of decay, with `lr_scale` = layer_decay^(L + 1 - layer).

    blocks: dotted names of the L blocks in order. Layer 0 is what the network holds before the first block (tokens,
    patch embedding), block i is layer i + 1, what follows the blocks (norms, head) is layer L + 1. Vectors, tokens and
    position embeddings do not decay. Frozen parameters are left out; groups stand in the order of their first
    parameter. timm's own groups differ: they give a last norm the last block's rate. Source: He et al. 2021,
    `lr_decay.py`, which has it from BEiT.
    """
    prefixes = [f"{name}." for name in blocks]
    groups: dict[str, dict] = {}
    layer = 0
    for name, parameter in net.named_parameters():
        inside = [i + 1 for i, prefix in enumerate(prefixes) if name.startswith(prefix)]
        layer = inside[0] if inside else (0 if layer == 0 else len(prefixes) + 1)
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and name.rpartition(".")[2] not in TOKENS
        key = f"layer_{layer}" + ("" if decays else "_no_decay")
        if key not in groups:
            scale = layer_decay ** (len(prefixes) + 1 - layer)
            decay = weight_decay if decays else 0.0
            groups[key] = {"name": key, "params": [], "names": [], "weight_decay": decay, "lr_scale": scale}
        groups[key]["params"].append(parameter)
        groups[key]["names"].append(name)
    return list(groups.values())


def weight_decay_groups(net: nn.Module, weight_decay: float = 0.05) -> list[dict]:
    """Two optimiser groups, vectors and biases without decay and the rest (tokens too) with it; no frozen ones.

    Source: the groups of timm 0.3.2 that MAE is pre-trained with.
    """
    groups = [
        {"name": "no_decay", "params": [], "names": [], "weight_decay": 0.0, "lr_scale": 1.0},
        {"name": "decay", "params": [], "names": [], "weight_decay": weight_decay, "lr_scale": 1.0},
    ]
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            group = groups[parameter.ndim > 1 and not re.search(r"(^|\.)bias$", name)]
            group["params"].append(parameter)
            group["names"].append(name)
    return [group for group in groups if group["params"]]
