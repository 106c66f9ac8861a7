"""Checkpoints of masked autoencoders: every layout gives the same weights, and what does not fit is named."""

import argparse

import pytest
import torch

from lightning_xai.nets.mae import MaskedAutoencoder
from lightning_xai.nets.mae_checkpoints import load_mae_checkpoint
from lightning_xai.nets.vit import build_vit
from lightning_xai.nets.vit_checkpoints import load_for_finetuning

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
DECODER = {"decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}


def small_mae(seed, **changes):
    torch.manual_seed(seed)
    return MaskedAutoencoder(**{**SMALL, **DECODER, **changes})


def encoder_of(weights):
    return {key: value for key, value in weights.items() if not key.startswith(("decoder_", "mask_token"))}


@pytest.mark.parametrize(
    "layout",
    [
        lambda weights: {"model": weights, "optimizer": {}, "epoch": 799, "args": argparse.Namespace(blr=1.5e-4)},
        lambda weights: {"state_dict": {f"net.{k}": v for k, v in weights.items()}, "epoch": 3},
        lambda weights: weights,
    ],
    ids=["original", "ours", "bare"],
)
def test_layouts(tmp_path, layout):
    trained, fresh = small_mae(1), small_mae(2)
    torch.save(layout(trained.state_dict()), tmp_path / "file.pth")
    load_mae_checkpoint(fresh, tmp_path / "file.pth")
    for (name, ours), theirs in zip(fresh.state_dict().items(), trained.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_encoder_alone(tmp_path):
    trained, fresh = small_mae(1), small_mae(2)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    torch.save({"model": encoder_of(trained.state_dict())}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"holds an encoder without decoder.*encoder_only=True"):
        load_mae_checkpoint(fresh, tmp_path / "file.pth")
    load_mae_checkpoint(fresh, tmp_path / "file.pth", encoder_only=True)
    for name, value in fresh.state_dict().items():
        expected = trained.state_dict()[name] if name in encoder_of(before) else before[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"img_size": 32}, "network of 16 patches, this one has 4: build it with the img_size"),
        ({"decoder_depth": 2}, "unexpected decoder_blocks.1"),
        ({"decoder_embed_dim": 12}, "other shapes"),
    ],
)
def test_checkpoint_of_another_network(tmp_path, changes, message):
    fresh = small_mae(2)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    torch.save({"model": small_mae(1, **changes).state_dict()}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=message):
        load_mae_checkpoint(fresh, tmp_path / "file.pth")
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_our_pretraining_is_fine_tuned(tmp_path):
    trained = small_mae(1)
    torch.save({"state_dict": {f"net.{k}": v for k, v in trained.state_dict().items()}}, tmp_path / "file.ckpt")
    vit = build_vit("timm:vit_tiny_patch16_224", SMALL | {"num_classes": 3, "global_pool": "avg"})
    load_for_finetuning(vit, tmp_path / "file.ckpt")
    ours, theirs = vit.net.state_dict(), trained.state_dict()
    shared = [name for name in ours if name in theirs]
    assert {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight"} <= set(shared) and "norm.weight" not in shared
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)
