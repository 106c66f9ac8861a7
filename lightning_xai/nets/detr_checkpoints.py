"""Reads DETR checkpoints: the original repository's, those of the explanation reference, transformers' and ours."""

import re
from pathlib import Path

from torch import Tensor, nn

from lightning_xai.nets.detector_weights import (
    from_transformers,
    join_projections,
    load_fitting,
    read_detector_weights,
)

CLASS_HEAD = re.compile(r"class_embed\.")
MASK_HEAD = ("mask_head.", "bbox_attention.")  # of panoptic files, whose detector has the prefix `detr.`

# transformers 4.x and 5.x names -> the original repository's, applied in this order.
RENAMINGS = [
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


def load_checkpoint(net: nn.Module, path: str | Path, drop_class_heads: bool = False) -> None:
    """Load a checkpoint file of any known layout into a `DETR`.

    path: a file, or a folder in transformers' layout. drop_class_heads: leave the network's class head as it is, to
    fine-tune on other classes. Raises FileNotFoundError or ValueError: no checkpoint, missing or unexpected keys (all
    named), other shapes. The network is unchanged when it raises.
    """
    arguments = "backbone, number of layers, position_embedding ..."
    load_fitting(net, read_checkpoint(path), path, CLASS_HEAD, drop_class_heads, arguments, background=1)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint file or folder under the original repository's names."""
    weights = read_detector_weights(path, "DETR")
    if any(k.startswith("detr.") for k in weights):
        weights = {k.removeprefix("detr."): v for k, v in weights.items() if not k.startswith(MASK_HEAD)}
    if any(k.startswith("model.") for k in weights):
        weights = from_transformers(weights, RENAMINGS)
    # separate in transformers and in the explanation reference
    return join_projections(weights, "attn")
