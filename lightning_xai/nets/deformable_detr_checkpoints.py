"""Reads Deformable DETR checkpoints: the original repository's, transformers' and this project's."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_xai.nets.weight_files import read_weight_file

CLASS_HEADS = re.compile(r"(transformer\.decoder\.)?class_embed\.")
DECODER_LAYER = re.compile(r"transformer\.decoder\.layers\.(\d+)\.")
IGNORED = (".total_params", ".total_ops")  # a FLOP counter's leftovers in published files
COUNTER = ".num_batches_tracked"  # of ordinary batch norm: frozen batch norm has none, and nothing depends on it
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")

# transformers 4.x and 5.x names -> the original repository's, applied in this order.
TRANSFORMERS_RENAMINGS = [
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone.0.body."),
    (r"^model\.(backbone\.)?position_embedding\.row_embeddings\.", "backbone.1.row_embed."),
    (r"^model\.(backbone\.)?position_embedding\.column_embeddings\.", "backbone.1.col_embed."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^model\.input_proj\.", "input_proj."),
    (r"^model\.", "transformer."),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.", r"\1.norm1."),
    (r"(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"(decoder\.layers\.\d+)\.encoder_attn\.", r"\1.cross_attn."),
    (r"(decoder\.layers\.\d+\.self_attn)\.o_proj\.", r"\1.out_proj."),
    (r"(layers\.\d+)\.(mlp\.)?fc([12])\.", r"\1.linear\3."),
]


def load_checkpoint(net: nn.Module, path: str | Path, drop_class_heads: bool = False) -> None:
    """Load a checkpoint file of any known layout into a `DeformableDETR`.

    path: a file, or a folder in transformers' layout. drop_class_heads: leave the network's class heads as they are, to
    fine-tune on other classes. Raises FileNotFoundError or ValueError: no checkpoint, missing or unexpected keys (all
    named), other shapes. The network is unchanged when it raises.
    """
    weights = read_checkpoint(path)
    own = net.state_dict(keep_vars=True)
    if drop_class_heads:
        weights = {k: v for k, v in weights.items() if not CLASS_HEADS.match(k)}
        own = {k: v for k, v in own.items() if not CLASS_HEADS.match(k)}
    names = defaultdict(list)  # one tensor of the network may have several names
    for key, tensor in own.items():
        names[id(tensor)].append(key)

    weights = {k: v for k, v in weights.items() if k in own or not k.endswith(COUNTER)}
    unexpected = [k for k in weights if k not in own]
    missing = [group[0] for group in names.values() if not any(k in weights or k.endswith(COUNTER) for k in group)]
    if missing or unexpected:
        problems = [
            f"{kind} {', '.join(keys)}" for kind, keys in (("missing", missing), ("unexpected", unexpected)) if keys
        ]
        raise ValueError(
            f"checkpoint '{path}' was made by a network with other arguments (with_box_refine, two_stage, number of "
            f"layers, backbone ...): {'; '.join(problems)}."
        )
    check_shapes(weights, own, path)
    for group in names.values():
        given = [k for k in group if k in weights]
        for key in given[1:]:
            if not torch.equal(weights[key], weights[given[0]]):
                raise ValueError(
                    f"checkpoint '{path}' has different tensors '{given[0]}' and '{key}' where the network has one: "
                    "was it trained with with_box_refine=True?"
                )
    with torch.no_grad():
        for key, tensor in weights.items():
            own[key].copy_(tensor)


def check_shapes(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise ValueError where a tensor of the file has another shape than the network's."""
    wrong = [k for k, v in weights.items() if v.shape != own[k].shape]
    for key in wrong:
        if CLASS_HEADS.match(key):
            raise ValueError(
                f"checkpoint '{path}' scores {len(weights[key])} classes, the network {len(own[key])}: build the "
                f"network with num_classes={len(weights[key])}, or load with drop_class_heads=True to train new heads."
            )
    if wrong:
        listed = ", ".join(f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}" for k in wrong)
        raise ValueError(f"checkpoint '{path}' has tensors of other shapes than the network: {listed}.")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint file or folder under the original repository's names."""
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not files:
            raise FileNotFoundError(f"folder '{path}' holds no checkpoint: none of {', '.join(FOLDER_FILES)}.")
        path = files[0]
    weights = unwrap(read_weight_file(path), path)
    if any(k.startswith("model.") for k in weights):
        weights = from_transformers(weights)
    return {k: v for k, v in weights.items() if not k.endswith(IGNORED)}


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
            f"'{path}' is no Deformable DETR checkpoint: expected a state dict, or one under 'model' (original "
            "repository) or under 'state_dict' with names that start with 'net.' (this project)."
        )
    return weights


def from_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names to the original ones; a decoder layer's query, key and value projections are joined."""
    renamed = {}
    for key, tensor in weights.items():
        for pattern, replacement in TRANSFORMERS_RENAMINGS:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    for key in [k for k in renamed if ".self_attn.q_proj." in k]:
        parts = [key.replace("q_proj", f"{p}_proj") for p in "qkv"]
        if all(part in renamed for part in parts):
            packed = key.replace("q_proj.", "in_proj_")
            renamed[packed] = torch.cat([renamed.pop(part) for part in parts])
    layers = 1 + max((int(m[1]) for m in map(DECODER_LAYER.match, renamed) if m), default=0)
    for head in ("class_embed.", "bbox_embed."):
        if not any(key.startswith("transformer.decoder." + head) for key in renamed):
            for key in [k for k in renamed if k.startswith(head + "0.")]:  # a head of all layers is saved once
                for layer in range(1, layers):
                    renamed.setdefault(key.replace(".0.", f".{layer}.", 1), renamed[key])
    return renamed
