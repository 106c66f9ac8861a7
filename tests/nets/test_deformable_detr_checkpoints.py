"""Checkpoints: every layout gives the same weights, and what does not fit is named before anything changes."""

import argparse

import pytest
import torch

from lightning_xai.nets.deformable_detr import DeformableDETR
from lightning_xai.nets.deformable_detr_checkpoints import load_checkpoint

SMALL = {
    "num_classes": 5,
    "backbone": "timm:resnet18",
    "backbone_args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 48, 64], "stem_width": 8},
    "hidden_dim": 64,
    "num_heads": 4,
    "num_feature_levels": 4,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "dim_feedforward": 64,
    "num_queries": 7,
}


def small_net(seed: int = 0, **changes) -> DeformableDETR:
    torch.manual_seed(seed)
    return DeformableDETR(**SMALL | changes)


def official(weights: dict) -> dict:
    return {"model": weights, "optimizer": {}, "epoch": 49, "args": argparse.Namespace(lr=2e-4, backbone="resnet50")}


def assert_same_weights(net: DeformableDETR, other: DeformableDETR) -> None:
    for (name, ours), theirs in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def transformers_layout(weights: dict, newest: bool) -> dict:
    """The names of transformers 4.x or 5.x, written down here by hand."""
    renamed = {}
    for key, tensor in weights.items():
        key = key.replace("backbone.0.body.", f"model.backbone.{'' if newest else 'conv_encoder.'}model.")
        key = key.replace("backbone.1.col_embed.", "model.backbone.position_embedding.column_embeddings.")
        key = key.replace("backbone.1.row_embed.", "model.backbone.position_embedding.row_embeddings.")
        key = key.replace("query_embed.", "model.query_position_embeddings.").replace(
            "input_proj.", "model.input_proj."
        )
        key = key.replace("transformer.", "model.").replace("cross_attn", "encoder_attn")
        for number in "12":
            key = key.replace(f".linear{number}.", f".mlp.fc{number}." if newest else f".fc{number}.")
        norms = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}
        if "decoder.layers" in key:
            norms = {"norm1": "encoder_attn_layer_norm", "norm2": "self_attn_layer_norm", "norm3": "final_layer_norm"}
            key = key.replace("self_attn.out_proj", "self_attn.o_proj") if newest else key
        if "layers" in key and "backbone" not in key:
            for ours, theirs in norms.items():
                key = key.replace(f".{ours}.", f".{theirs}.")
        if "in_proj_" in key:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[key.replace("in_proj_", f"{letter}_proj.")] = part.clone()
        else:
            renamed[key] = tensor
    return renamed


@pytest.mark.parametrize("variant", [{}, {"with_box_refine": True}, {"with_box_refine": True, "two_stage": True}])
def test_official_layout(variant, tmp_path):
    source, net = small_net(1, **variant), small_net(2, **variant)
    weights = source.state_dict()
    weights["backbone.0.total_params"] = torch.zeros(1)  # leftovers of a FLOP counter in published files
    weights["transformer.encoder.total_ops"] = torch.zeros(1)
    torch.save(official(weights), tmp_path / "checkpoint.pth")
    load_checkpoint(net, tmp_path / "checkpoint.pth")
    assert_same_weights(net, source)


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("variant", [{"position_embedding": "learned"}, {"with_box_refine": True, "two_stage": True}])
def test_transformers_layout(variant, newest, tmp_path):
    from safetensors.torch import save_file

    source, net = small_net(1, **variant), small_net(2, **variant)
    weights = transformers_layout(source.state_dict(), newest)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    load_checkpoint(net, tmp_path / "pytorch_model.bin")
    assert_same_weights(net, source)

    own = {tensor.data_ptr(): key for key, tensor in weights.items()}  # such files hold a shared tensor once
    save_file({key: weights[key].contiguous() for key in own.values()}, tmp_path / "model.safetensors")
    net = small_net(3, **variant)
    load_checkpoint(net, tmp_path)
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


def test_refined_weights_do_not_enter_a_net_with_shared_heads(tmp_path):
    weights = small_net(1, with_box_refine=True).state_dict()
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith("transformer.decoder.bbox_embed")}
    torch.save(weights, tmp_path / "weights.pth")
    net = small_net(2)
    with pytest.raises(ValueError, match=r"'bbox_embed.0.layers.2.bias' and 'bbox_embed.1.layers.2.bias'.*refine"):
        load_checkpoint(net, tmp_path / "weights.pth")
    assert_same_weights(net, small_net(2))


def test_other_number_of_classes_names_both_and_the_way_out(tmp_path):
    source = small_net(1, num_classes=91, with_box_refine=True, two_stage=True)
    torch.save(official(source.state_dict()), tmp_path / "checkpoint.pth")
    net = small_net(2, with_box_refine=True, two_stage=True)
    with pytest.raises(ValueError, match=r"scores 91 classes, the network 5: .*drop_class_heads=True"):
        load_checkpoint(net, tmp_path / "checkpoint.pth")
    load_checkpoint(net, tmp_path / "checkpoint.pth", drop_class_heads=True)
    fresh = small_net(2, with_box_refine=True, two_stage=True).state_dict()
    loaded, given = net.state_dict(), source.state_dict()
    for key, tensor in loaded.items():
        assert torch.equal(tensor, fresh[key] if "class_embed" in key else given[key]), key


def test_other_shapes_are_named(tmp_path):
    torch.save(small_net(1, num_queries=9).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"query_embed.weight \(9, 128\) instead of \(7, 128\)"):
        load_checkpoint(small_net(2), tmp_path / "weights.pth")


def test_what_is_no_checkpoint_gives_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = small_net()
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        load_checkpoint(net, "missing.pth")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_checkpoint(net, "folder")
    torch.save({"state_dict": {"backbone.weight": torch.zeros(1)}}, "other.ckpt")
    torch.save([1, 2, 3], "list.pth")
    for name in ("other.ckpt", "list.pth"):
        with pytest.raises(ValueError, match=f"'{name}' is no Deformable DETR checkpoint"):
            load_checkpoint(net, name)
