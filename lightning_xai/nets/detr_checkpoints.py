"""Reads DETR checkpoints: the original repository's, those of the explanation reference, transformers' and ours."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_xai.nets.weight_files import read_weight_file

FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")
COUNTER = ".num_batches_tracked"  # of ordinary batch norm: frozen batch norm has none, and nothing depends on it
MASK_HEAD = ("mask_head.", "bbox_attention.")  # of panoptic files, whose detector has the prefix `detr.`

# transformers 4.x and 5.x names -> the original repository's, applied in this order.
TRANSFORMERS_RENAMINGS = [
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone.0.body."),
    (r"^model\.(backbone\.)?position_embedding\.row_embeddings\.", "backbone.1.row_embed."),
    (r"^model\.(backbone\.)?position_embedding\.column_embeddings\.", "backbone.1.col_embed."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^model\.input_projection\.", "input_proj."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
    (r"^model\.", "transformer."),
    (r"decoder\.layernorm\.", "decoder.norm."),
    (r"(layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"(decoder\.layers\.\d+)\.encoder_attn\.", r"\1.multihead_attn."),
    (r"attn\.o_proj\.", "attn.out_proj."),
    (r"(layers\.\d+)\.(mlp\.)?fc([12])\.", r"\1.linear\3."),
]


def load_checkpoint(net: nn.Module, path: str | Path, drop_class_head: bool = False) -> None:
    """Load a checkpoint file of any known layout into a `DETR`.

    path: a file, or a folder in transformers' layout. drop_class_head: leave the network's class head as it is, to
    fine-tune on other classes. Raises FileNotFoundError or ValueError: no checkpoint, missing or unexpected keys (all
    named), other shapes. The network is unchanged when it raises.
    """
    weights = read_checkpoint(path)
    own = net.state_dict(keep_vars=True)
    if drop_class_head:
        weights = {k: v for k, v in weights.items() if not k.startswith("class_embed.")}
        own = {k: v for k, v in own.items() if not k.startswith("class_embed.")}
    weights = {k: v for k, v in weights.items() if k in own or not k.endswith(COUNTER)}
    missing = [k for k in own if k not in weights and not k.endswith(COUNTER)]
    unexpected = [k for k in weights if k not in own]
    if missing or unexpected:
        problems = [
            f"{kind} {', '.join(keys)}" for kind, keys in (("missing", missing), ("unexpected", unexpected)) if keys
        ]
        raise ValueError(
            f"checkpoint '{path}' was made by a network with other arguments (backbone, number of layers, "
            f"position_embedding ...): {'; '.join(problems)}."
        )
    wrong = [k for k, v in weights.items() if v.shape != own[k].shape]
    if "class_embed.bias" in wrong:
        given, ours = (len(tensors["class_embed.bias"]) - 1 for tensors in (weights, own))
        raise ValueError(
            f"checkpoint '{path}' scores {given} classes, the network {ours}: build the network with "
            f"num_classes={given}, or load with drop_class_head=True to train a new head."
        )
    if wrong:
        listed = ", ".join(f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}" for k in wrong)
        raise ValueError(f"checkpoint '{path}' has tensors of other shapes than the network: {listed}.")
    with torch.no_grad():
        for key, tensor in weights.items():
            own[key].copy_(tensor)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint file or folder under the original repository's names."""
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not files:
            raise FileNotFoundError(f"folder '{path}' holds no checkpoint: none of {', '.join(FOLDER_FILES)}.")
        path = files[0]
    weights = unwrap(read_weight_file(path), path)
    if any(k.startswith("detr.") for k in weights):
        weights = {k.removeprefix("detr."): v for k, v in weights.items() if not k.startswith(MASK_HEAD)}
    if any(k.startswith("model.") for k in weights):
        weights = from_transformers(weights)
    return join_projections(weights)


def unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint: under `model` (original), under `state_dict` with prefix `net.` (ours), or it."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        state = {k.replace("_orig_mod.", ""): v for k, v in content["state_dict"].items()}
        weights = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
    elif isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        weights = dict(content["model"])
    else:
        weights = dict(content) if isinstance(content, Mapping) else {}
    if not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(
            f"'{path}' is no DETR checkpoint: expected a state dict, or one under 'model' (original repository) or "
            "under 'state_dict' with names that start with 'net.' (this project)."
        )
    return weights


def from_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names to the original ones."""
    renamed = {}
    for key, tensor in weights.items():
        for pattern, replacement in TRANSFORMERS_RENAMINGS:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    return renamed


def join_projections(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Separate query, key and value projections (transformers, the explanation reference) as one `in_proj_*`."""
    joined = dict(weights)
    for key in [k for k in weights if "attn.q_proj." in k]:
        parts = [key.replace("q_proj", f"{p}_proj") for p in "qkv"]
        if all(part in joined for part in parts):
            joined[key.replace("q_proj.", "in_proj_")] = torch.cat([joined.pop(part) for part in parts])
    return joined
