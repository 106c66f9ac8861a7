"""Reads checkpoints of vision transformers with timm's names: timm's own files, DeiT's, MAE's and this project's."""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_xai.nets.vit import ViT
from lightning_xai.nets.weight_files import listed, other_names, read_weight_file, some_of

PATCHES = "patch_embed.proj.weight"
POSITIONS = "pos_embed"
HEADS = ("head.", "head_dist.", "classifier.")
PRETRAINING = ("decoder_", "mask_token")  # what a masked autoencoder has beside its encoder
NEW_HEAD_STD = 2e-5
WRAPPERS = ("model", "state_dict", "state_dict_ema")  # entries that hold the weights: DeiT and MAE, timm's training


def load_vit_checkpoint(vit: ViT, path: str | Path, drop_head: bool = False) -> list[str] | None:
    """Load a checkpoint file into a `ViT` that holds a network with timm's names; its class names where it says them.

    drop_head: leave the classifier as it is, to fine-tune on other classes. Raises FileNotFoundError or ValueError: no
    file, missing or unexpected keys (the first named), other shapes. The network is unchanged when it raises.
    """
    content = read_weight_file(path)
    weights, own = encoder_weights(vit, content, path), vit.net.state_dict()
    if drop_head:
        weights, own = ({k: v for k, v in d.items() if not k.startswith(HEADS)} for d in (weights, own))
    check_fit(vit.net, weights, own, path)
    vit.net.load_state_dict(weights, strict=False)
    return content.get("class_names") if isinstance(content, Mapping) else None


def load_for_finetuning(vit: ViT, path: str | Path) -> None:
    """Load a pre-trained encoder, or a trained classifier without its head, and make the head anew.

    Decoder and mask token of a masked autoencoder are left out, so is its last norm where the network pools patches and
    has none; the norm after pooling may be missing and stays as it is. Position embeddings of another image size are
    interpolated. The new head has weights N(0, 2e-5^2) and biases 0, so that the first loss is ln(classes). Raises as
    `load_vit_checkpoint`. Source: MAE, `main_finetune.py`.
    """
    own = {k: v for k, v in vit.net.state_dict().items() if not k.startswith(HEADS)}
    encoder = encoder_weights(vit, read_weight_file(path), path)
    weights = {k: v for k, v in encoder.items() if not k.startswith((*HEADS, *PRETRAINING))}
    if "norm.weight" not in own:
        weights = {k: v for k, v in weights.items() if not k.startswith("norm.")}
    needed = {k: v for k, v in own.items() if not k.startswith("fc_norm.") or k in weights}
    if POSITIONS in weights and POSITIONS in own and weights[POSITIONS].dim() == 3:
        prefix = 0 if getattr(vit.net, "no_embed_class", False) else vit.prefix
        weights[POSITIONS] = interpolate_positions(weights[POSITIONS], own[POSITIONS].shape[1], prefix)
    check_fit(vit.net, weights, needed, path)
    vit.net.load_state_dict(weights, strict=False)
    for head in vit.classifiers():
        nn.init.trunc_normal_(head.weight, std=NEW_HEAD_STD)
        nn.init.zeros_(head.bias)


def interpolate_positions(positions: Tensor, tokens: int, prefix: int = 1) -> Tensor:
    """Position embeddings (1, prefix + a^2, C) for another number of `tokens` = prefix + b^2: (1, tokens, C).

    The prefix (class token) is kept, the grid of patches is interpolated, bicubic with align_corners=False. Grids that
    are no squares are returned as they are. Source: MAE, `interpolate_pos_embed`.
    """
    old, new = isqrt(max(positions.shape[1] - prefix, 0)), isqrt(max(tokens - prefix, 0))
    if old**2 + prefix != positions.shape[1] or new**2 + prefix != tokens or old == new:
        return positions
    grid = positions[:, prefix:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), (new, new), mode="bicubic", align_corners=False).to(positions.dtype)
    return torch.cat([positions[:, :prefix], grid.flatten(2).transpose(1, 2)], 1)


def encoder_weights(vit: ViT, content: object, path: str | Path) -> dict[str, Tensor]:
    """The weights in a file's content by the names of `vit.net`, the patch embedding in its shape."""
    weights, own = unwrap(content, path), vit.net.state_dict()
    matrix = weights.get(PATCHES)  # its shape in the first published files
    if matrix is not None and matrix.dim() == 2 and PATCHES in own and matrix.numel() == own[PATCHES].numel():
        weights[PATCHES] = matrix.reshape(own[PATCHES].shape)
    return weights


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
    problems = listed(other_names(weights, own))
    if problems:
        raise ValueError(f"checkpoint '{path}' does not fit {type(net).__name__}: {problems}.")
    wrong = [k for k in weights if weights[k].shape != own[k].shape]
    if wrong:
        remedy = "build it with the same img_size, patch_size and num_classes"
        if all(k.startswith(HEADS) for k in wrong):
            classes = len(weights[wrong[0]])
            remedy = f"build it with num_classes={classes}, or make a new head: drop_head=True, in a task 'finetune'"
        shapes = some_of([f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}" for k in wrong])
        raise ValueError(
            f"checkpoint '{path}' has tensors of other shapes than {type(net).__name__}: {shapes}; {remedy}."
        )
