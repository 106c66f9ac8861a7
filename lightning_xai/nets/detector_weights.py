"""What checkpoints of DETR and Deformable DETR have in common: where weights lie in a file, and whether they fit."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_xai.nets.weight_files import read_weight_file

FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")
COUNTER = ".num_batches_tracked"  # of ordinary batch norm: frozen batch norm has none, and nothing depends on it

# transformers 4.x and 5.x names -> the original repositories', applied before those of one architecture.
TRANSFORMERS_RENAMINGS = [
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone.0.body."),
    (r"^model\.(backbone\.)?position_embedding\.row_embeddings\.", "backbone.1.row_embed."),
    (r"^model\.(backbone\.)?position_embedding\.column_embeddings\.", "backbone.1.col_embed."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
]


def read_detector_weights(path: str | Path, kind: str) -> dict[str, Tensor]:
    """The weights in a checkpoint file, or in a folder of transformers, under the names that they have there.

    kind: the architecture, for messages. Raises FileNotFoundError or ValueError where there are none.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not files:
            raise FileNotFoundError(f"folder '{path}' holds no checkpoint: none of {', '.join(FOLDER_FILES)}.")
        path = files[0]
    content = read_weight_file(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        state = {k.replace("_orig_mod.", ""): v for k, v in content["state_dict"].items()}
        weights = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
    elif isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        weights = dict(content["model"])
    else:
        weights = dict(content) if isinstance(content, Mapping) else {}
    if not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(
            f"'{path}' is no {kind} checkpoint: expected a state dict, or one under 'model' (original repository) or "
            "under 'state_dict' with names that start with 'net.' (this project)."
        )
    return weights


def from_transformers(weights: Mapping[str, Tensor], renamings: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """transformers' names to the original ones, by `TRANSFORMERS_RENAMINGS` and an architecture's own."""
    renamed = {}
    for key, tensor in weights.items():
        for pattern, replacement in (*TRANSFORMERS_RENAMINGS, *renamings):
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    return renamed


def join_projections(weights: Mapping[str, Tensor], attention: str) -> dict[str, Tensor]:
    """Query, key and value projections of the modules whose names end with `attention`, as one `in_proj_*`."""
    joined = dict(weights)
    for key in [k for k in weights if f"{attention}.q_proj." in k]:
        parts = [key.replace("q_proj", f"{p}_proj") for p in "qkv"]
        if all(part in joined for part in parts):
            joined[key.replace("q_proj.", "in_proj_")] = torch.cat([joined.pop(part) for part in parts])
    return joined


def load_fitting(
    net: nn.Module,
    weights: Mapping[str, Tensor],
    path: str | Path,
    class_heads: re.Pattern,
    drop_class_heads: bool,
    arguments: str,
    background: int = 0,
) -> None:
    """Load weights into a network that they must fit tensor by tensor; it is unchanged when this raises.

    class_heads: names of the heads that `drop_class_heads` leaves as they are. arguments: of the network, that decide
    which tensors there are. background: how many scores stand for no class. Raises ValueError that names what is
    missing, unexpected or of another shape, and where the file has different tensors in the place of a shared one.
    """
    own = net.state_dict(keep_vars=True)
    if drop_class_heads:
        weights = {k: v for k, v in weights.items() if not class_heads.match(k)}
        own = {k: v for k, v in own.items() if not class_heads.match(k)}
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
            f"checkpoint '{path}' was made by a network with other arguments ({arguments}): {'; '.join(problems)}."
        )
    wrong = [k for k, v in weights.items() if v.shape != own[k].shape]
    for key in filter(class_heads.match, wrong):
        given, ours = (len(tensors[key]) - background for tensors in (weights, own))
        raise ValueError(
            f"checkpoint '{path}' scores {given} classes, the network {ours}: build the network with "
            f"num_classes={given}, or load with drop_class_heads=True to train new heads."
        )
    if wrong:
        listed = ", ".join(f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}" for k in wrong)
        raise ValueError(f"checkpoint '{path}' has tensors of other shapes than the network: {listed}.")
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
