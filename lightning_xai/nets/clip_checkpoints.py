"""Reads OpenAI's CLIP checkpoints with ViT towers into transformers' CLIPModel."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_xai.nets.weight_files import listed, other_names, read_weight_file

HEAD_WIDTH = 64  # of every published model
SIZES = ("input_resolution", "context_length", "vocab_size")  # numbers in the archives' state dicts, not weights
OURS = "net.net."  # in checkpoints of this project, before transformers' names
TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}

# OpenAI's names -> transformers', applied in this order.
RENAMINGS = [
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"(layers\.\d+)\.attn\.", r"\1.self_attn."),
    (r"(layers\.\d+)\.ln_([12])\.", r"\1.layer_norm\2."),
    (r"(layers\.\d+)\.mlp\.c_fc\.", r"\1.mlp.fc1."),
    (r"(layers\.\d+)\.mlp\.c_proj\.", r"\1.mlp.fc2."),
]


def read_openai_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file of OpenAI's, a TorchScript archive or a state dict, under their own names, in float32.

    Raises FileNotFoundError or ValueError: no such file, or no state dict in it.
    """
    if zipfile.is_zipfile(path) and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
        content: object = torch.jit.load(path, map_location="cpu").state_dict()
    else:
        content = read_weight_file(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"'{path}' is no CLIP checkpoint: expected OpenAI's TorchScript archive or a state dict.")
    return {k: v.float() for k, v in content.items() if k not in SIZES}


def clip_from_openai(
    weights: Mapping[str, Tensor],
    path: str | Path = "state dict",
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> nn.Module:
    """transformers' CLIPModel with the weights of an OpenAI checkpoint; all sizes follow from the shapes.

    path: named in errors. vision_heads, text_heads: heads of each tower; default: one for every 64 channels.
    Raises ValueError: ResNet towers, missing or unexpected keys (all named), other shapes.
    """
    if any(key.startswith("visual.layer1.") for key in weights):
        raise ValueError(f"'{path}' has a ResNet for images, which has no attention maps: give one of the ViT models.")
    try:
        config = _config(weights, vision_heads, text_heads)
    except KeyError as error:
        raise ValueError(f"'{path}' is no CLIP checkpoint of OpenAI's with ViT towers: it lacks {error}.") from error
    from transformers import CLIPModel

    net = CLIPModel(config)
    load_checked(net, to_transformers(weights), path)
    return net.eval()


def read_clip_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights under transformers' names, of a file of OpenAI's or of this project, or a folder of transformers.

    Raises FileNotFoundError or ValueError: nothing there, or no weights in it.
    """
    if Path(path).is_dir():
        from transformers import CLIPModel

        return CLIPModel.from_pretrained(path, local_files_only=True).float().state_dict()
    weights = read_openai_weights(path)
    if all(key.startswith(OURS) for key in weights):
        return {key.removeprefix(OURS): tensor for key, tensor in weights.items()}
    return to_transformers(weights)


def load_checked(net: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Load weights under transformers' names; raises ValueError that names every key that does not fit."""
    own = net.state_dict()
    wrong = [k for k in own if k in weights and weights[k].shape != own[k].shape]
    problems = listed({**other_names(weights, own), "other shapes": wrong})
    if problems:
        raise ValueError(f"'{path}' does not fit this CLIP model (transformers' names): {problems}.")
    net.load_state_dict(weights)


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under transformers' names; each layer's joint projection is split into query, key and value."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        if key in TRANSPOSED:
            renamed[TRANSPOSED[key]] = tensor.T.contiguous()
            continue
        for pattern, replacement in RENAMINGS:
            key = re.sub(pattern, replacement, key)
        if ".in_proj_" in key:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[key.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            renamed[key] = tensor
    return renamed


def _config(weights: Mapping[str, Tensor], vision_heads: int | None, text_heads: int | None):
    from transformers import CLIPConfig

    layers = {
        tower: len({k.split("resblocks.")[1].split(".")[0] for k in weights if k.startswith(f"{tower}resblocks.")})
        for tower in ("visual.transformer.", "transformer.")
    }
    width, _, patch, _ = weights["visual.conv1.weight"].shape
    text_width, embed_dim = weights["text_projection"].shape
    side = round((len(weights["visual.positional_embedding"]) - 1) ** 0.5)
    vocabulary = len(weights["token_embedding.weight"])
    shared = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": embed_dim}
    vision = {
        "hidden_size": width,
        "intermediate_size": len(weights["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": layers["visual.transformer."],
        "num_attention_heads": vision_heads or width // HEAD_WIDTH,
        "image_size": patch * side,
        "patch_size": patch,
    }
    text = {
        "hidden_size": text_width,
        "intermediate_size": len(weights["transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": layers["transformer."],
        "num_attention_heads": text_heads or text_width // HEAD_WIDTH,
        "max_position_embeddings": len(weights["positional_embedding"]),
        "vocab_size": vocabulary,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,  # start and end of text are the last two words
        "pad_token_id": 0,
    }
    return CLIPConfig(text_config=text | shared, vision_config=vision | shared, projection_dim=embed_dim)
