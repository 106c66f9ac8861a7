"""Reads Deformable DETR checkpoints: the original repository's, transformers' and this project's."""

import re
from pathlib import Path

from torch import Tensor, nn

from lightning_xai.nets.detector_weights import (
    from_transformers,
    join_projections,
    load_fitting,
    read_detector_weights,
)

CLASS_HEADS = re.compile(r"(transformer\.decoder\.)?class_embed\.")
DECODER_LAYER = re.compile(r"transformer\.decoder\.layers\.(\d+)\.")
IGNORED = (".total_params", ".total_ops")  # a FLOP counter's leftovers in published files

# transformers 4.x and 5.x names -> the original repository's, applied in this order.
RENAMINGS = [
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
    arguments = "with_box_refine, two_stage, number of layers, backbone ..."
    load_fitting(net, read_checkpoint(path), path, CLASS_HEADS, drop_class_heads, arguments)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint file or folder under the original repository's names."""
    weights = read_detector_weights(path, "Deformable DETR")
    if any(k.startswith("model.") for k in weights):
        weights = heads_of_all_layers(join_projections(from_transformers(weights, RENAMINGS), ".self_attn"))
    return {k: v for k, v in weights.items() if not k.endswith(IGNORED)}


def heads_of_all_layers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A head that serves all decoder layers is saved once by transformers; here it has the name of each layer."""
    layers = 1 + max((int(m[1]) for m in map(DECODER_LAYER.match, weights) if m), default=0)
    for head in ("class_embed.", "bbox_embed."):
        if not any(key.startswith("transformer.decoder." + head) for key in weights):
            for key in [k for k in weights if k.startswith(head + "0.")]:
                for layer in range(1, layers):
                    weights.setdefault(key.replace(".0.", f".{layer}.", 1), weights[key])
    return weights
