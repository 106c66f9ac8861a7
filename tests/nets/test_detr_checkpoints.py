"""DETR's checkpoints: every layout gives the same weights, and what does not fit is named before anything changes."""

import argparse

import pytest
import torch

from lightning_xai.nets.detr import DETR
from lightning_xai.nets.detr_checkpoints import load_checkpoint

SMALL = {
    "num_classes": 5,
    "backbone": "timm:resnet18",
    "backbone_args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 48, 64], "stem_width": 8},
    "hidden_dim": 32,
    "num_heads": 4,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "dim_feedforward": 64,
    "num_queries": 7,
}


def small_net(seed: int = 0, **changes) -> DETR:
    torch.manual_seed(seed)
    return DETR(**SMALL | changes)


def official(weights: dict) -> dict:
    return {"model": weights, "optimizer": {}, "epoch": 299, "args": argparse.Namespace(lr=1e-4, backbone="resnet50")}


def assert_same_weights(net: DETR, other: DETR) -> None:
    for (name, ours), theirs in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def split_projections(weights: dict) -> dict:
    """The layout of the explanation reference, which has its own attention module."""
    split = {}
    for key, tensor in weights.items():
        if "in_proj_" in key:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                split[key.replace("in_proj_", f"{letter}_proj.")] = part.clone()
        else:
            split[key] = tensor
    return split


def transformers_layout(weights: dict, newest: bool) -> dict:
    """The names of transformers 4.x or 5.x, written down here by hand."""
    renamed = {}
    for key, tensor in split_projections(weights).items():
        key = key.replace("backbone.0.body.", f"model.backbone.{'' if newest else 'conv_encoder.'}model.")
        key = key.replace("backbone.1.col_embed.", "model.backbone.position_embedding.column_embeddings.")
        key = key.replace("backbone.1.row_embed.", "model.backbone.position_embedding.row_embeddings.")
        key = key.replace("query_embed.", "model.query_position_embeddings.")
        key = key.replace("input_proj.", "model.input_projection.").replace("class_embed.", "class_labels_classifier.")
        key = key.replace("bbox_embed.", "bbox_predictor.").replace("transformer.", "model.")
        key = key.replace("multihead_attn", "encoder_attn").replace("decoder.norm.", "decoder.layernorm.")
        norms = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}
        if "decoder.layers" in key:
            norms = {"norm1": "self_attn_layer_norm", "norm2": "encoder_attn_layer_norm", "norm3": "final_layer_norm"}
        if "layers" in key and "backbone" not in key and "bbox" not in key:
            for ours, theirs in norms.items():
                key = key.replace(f".{ours}.", f".{theirs}.")
            for number in "12":
                key = key.replace(f".linear{number}.", f".mlp.fc{number}." if newest else f".fc{number}.")
            key = key.replace("attn.out_proj", "attn.o_proj") if newest else key
        renamed[key] = tensor
    return renamed


@pytest.mark.parametrize("variant", [{}, {"position_embedding": "learned"}])
@pytest.mark.parametrize("layout", ["original", "bare", "panoptic", "reference", "transformers 4", "transformers 5"])
def test_every_layout_gives_the_same_weights(layout, variant, tmp_path):
    source, net = small_net(1, **variant), small_net(2, **variant)
    weights = source.state_dict()
    content = {
        "original": lambda: official(weights),
        "bare": lambda: weights,
        "panoptic": lambda: official(
            {f"detr.{k}": v for k, v in weights.items()} | {"mask_head.lay1.weight": torch.zeros(1)}
        ),
        "reference": lambda: official(split_projections(weights)),
        "transformers 4": lambda: transformers_layout(weights, newest=False),
        "transformers 5": lambda: transformers_layout(weights, newest=True),
    }[layout]()
    torch.save(content, tmp_path / "pytorch_model.bin")
    load_checkpoint(net, tmp_path if layout.startswith("transformers") else tmp_path / "pytorch_model.bin")
    assert_same_weights(net, source)


@pytest.mark.parametrize("prefix", ["net.", "net._orig_mod."])
def test_lightning_layout(prefix, tmp_path):
    source, net = small_net(1), small_net(2)
    weights = {prefix + key: tensor for key, tensor in source.state_dict().items()} | {"criterion.x": torch.zeros(1)}
    torch.save({"state_dict": weights, "epoch": 3, "hyper_parameters": {"lr": 1e-4}}, tmp_path / "last.ckpt")
    load_checkpoint(net, tmp_path / "last.ckpt")
    assert_same_weights(net, source)


def test_missing_and_unexpected_keys_are_named_and_nothing_changes(tmp_path):
    weights = small_net(1).state_dict()
    del weights["query_embed.weight"]
    weights["neck.weight"] = torch.zeros(1)
    torch.save(official(weights), tmp_path / "checkpoint.pth")
    net = small_net(2)
    with pytest.raises(ValueError, match=r"missing query_embed.weight; unexpected neck.weight"):
        load_checkpoint(net, tmp_path / "checkpoint.pth")
    assert_same_weights(net, small_net(2))


def test_other_number_of_classes_names_both_and_the_way_out(tmp_path):
    source = small_net(1, num_classes=91)
    torch.save(official(source.state_dict()), tmp_path / "checkpoint.pth")
    net = small_net(2)
    with pytest.raises(ValueError, match=r"scores 91 classes, the network 5: .*drop_class_heads=True"):
        load_checkpoint(net, tmp_path / "checkpoint.pth")
    load_checkpoint(net, tmp_path / "checkpoint.pth", drop_class_heads=True)
    fresh, loaded, given = small_net(2).state_dict(), net.state_dict(), source.state_dict()
    for key, tensor in loaded.items():
        assert torch.equal(tensor, fresh[key] if key.startswith("class_embed") else given[key]), key


def test_other_shapes_and_files_that_are_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = small_net()
    torch.save(small_net(1, num_queries=9).state_dict(), "weights.pth")
    with pytest.raises(ValueError, match=r"query_embed.weight \(9, 32\) instead of \(7, 32\)"):
        load_checkpoint(net, "weights.pth")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_checkpoint(net, "folder")
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        load_checkpoint(net, "missing.pth")
    torch.save([1, 2, 3], "list.pth")
    with pytest.raises(ValueError, match=r"'list\.pth' is no DETR checkpoint"):
        load_checkpoint(net, "list.pth")
