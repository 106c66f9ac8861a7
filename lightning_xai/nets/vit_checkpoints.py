"""Reads checkpoints of vision transformers with timm's names: timm's own files, DeiT's, MAE's and this project's."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from lightning_xai.nets.vit import ViT
from lightning_xai.nets.weight_files import read_weight_file

PATCHES = "patch_embed.proj.weight"
HEADS = ("head.", "head_dist.")
WRAPPERS = ("model", "state_dict", "state_dict_ema")  # entries that hold the weights: DeiT and MAE, timm's training


def load_vit_checkpoint(vit: ViT, path: str | Path, drop_head: bool = False) -> None:
    """Load a checkpoint file into a `ViT` that holds a network with timm's names.

    drop_head: leave the classifier as it is, to fine-tune on other classes. Raises FileNotFoundError or ValueError: no
    file, missing or unexpected keys (all named), other shapes. The network is unchanged when it raises.
    """
    weights = unwrap(read_weight_file(path), path)
    own = vit.net.state_dict()
    if drop_head:
        weights, own = ({k: v for k, v in d.items() if not k.startswith(HEADS)} for d in (weights, own))
    matrix = weights.get(PATCHES)  # its shape in the first published files
    if matrix is not None and matrix.dim() == 2 and PATCHES in own and matrix.numel() == own[PATCHES].numel():
        weights[PATCHES] = matrix.reshape(own[PATCHES].shape)
    check_fit(vit.net, weights, own, path)
    vit.net.load_state_dict(weights, strict=False)


def unwrap(content: object, path: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint, without the prefixes of parallel wrappers and of this project's tasks."""
    if isinstance(content, Mapping):
        inner = [content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        content = inner[0] if inner else content
    weights = dict(content) if isinstance(content, Mapping) else {}
    if not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(
            f"'{path}' is no checkpoint of a vision transformer: expected a state dict with timm's names, or one under "
            f"{' or '.join(repr(name) for name in WRAPPERS)}."
        )
    for prefix in ("module.", "_orig_mod.", "net.net.", "net."):
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    return weights


def check_fit(net: nn.Module, weights: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise ValueError where `weights` and the network's `own` differ in names or shapes."""
    problems = {"missing": [k for k in own if k not in weights], "unexpected": [k for k in weights if k not in own]}
    if any(problems.values()):
        listed = "; ".join(f"{kind} {', '.join(keys)}" for kind, keys in problems.items() if keys)
        raise ValueError(f"checkpoint '{path}' does not fit {type(net).__name__}: {listed}.")
    wrong = [k for k in weights if weights[k].shape != own[k].shape]
    if wrong:
        remedy = "build it with the same img_size, patch_size and num_classes"
        if all(k.startswith(HEADS) for k in wrong):
            classes = len(weights[wrong[0]])
            remedy = f"build it with num_classes={classes}, or load with drop_head=True to train a new head"
        listed = ", ".join(f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}" for k in wrong)
        raise ValueError(
            f"checkpoint '{path}' has tensors of other shapes than {type(net).__name__}: {listed}; {remedy}."
        )
