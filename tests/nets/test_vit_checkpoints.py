"""Checkpoints of vision transformers: every layout gives the same weights, and what does not fit is named."""

import argparse

import pytest
import torch

from lightning_xai.nets.vit import ViT, build_vit
from lightning_xai.nets.vit_checkpoints import load_vit_checkpoint

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2, "num_classes": 5}


def small_vit(seed: int, **changes) -> ViT:
    torch.manual_seed(seed)
    return build_vit("timm:vit_tiny_patch16_224", SMALL | changes)


def as_matrix(weights: dict) -> dict:
    return weights | {"patch_embed.proj.weight": weights["patch_embed.proj.weight"].flatten(1)}


@pytest.mark.parametrize(
    "layout",
    [
        lambda weights: weights,
        lambda weights: {"model": weights, "epoch": 3, "args": argparse.Namespace(lr=1e-3)},
        lambda weights: {"state_dict": {f"module.{k}": v for k, v in weights.items()}, "epoch": 3},
        lambda weights: {"state_dict": {f"net.net.{k}": v for k, v in weights.items()}},
        as_matrix,
    ],
    ids=["timm", "deit", "parallel", "ours", "matrix"],
)
def test_layouts(tmp_path, layout):
    trained, fresh = small_vit(1), small_vit(2)
    torch.save(layout(trained.net.state_dict()), tmp_path / "file.pth")
    load_vit_checkpoint(fresh, tmp_path / "file.pth")
    for (name, ours), theirs in zip(fresh.state_dict().items(), trained.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_build_with_weights(tmp_path):
    trained = small_vit(1)
    torch.save(trained.net.state_dict(), tmp_path / "file.pth")
    built = build_vit("timm:vit_tiny_patch16_224", SMALL, weights=tmp_path / "file.pth")
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(built(images)["logits"], trained(images)["logits"])


def test_other_classes_and_a_new_head(tmp_path):
    trained, fresh = small_vit(1), small_vit(2, num_classes=3)
    torch.save(trained.net.state_dict(), tmp_path / "file.pth")
    head = fresh.net.head.weight.clone()
    with pytest.raises(ValueError, match=r"head.weight \(5, 12\) instead of \(3, 12\).*num_classes=5.*drop_head"):
        load_vit_checkpoint(fresh, tmp_path / "file.pth")
    load_vit_checkpoint(fresh, tmp_path / "file.pth", drop_head=True)
    assert torch.equal(fresh.net.head.weight, head)
    assert torch.equal(fresh.net.pos_embed, trained.net.pos_embed)


def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path):
    trained, fresh = small_vit(1), small_vit(2)
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    weights = trained.net.state_dict()
    del weights["norm.bias"]
    torch.save(weights | {"decoder.weight": torch.zeros(1)}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"missing norm.bias; unexpected decoder.weight"):
        load_vit_checkpoint(fresh, tmp_path / "file.pth")
    torch.save(small_vit(1, img_size=24).net.state_dict(), tmp_path / "larger.pth")
    message = r"pos_embed \(1, 10, 12\) instead of \(1, 5, 12\); build it with the same img_size"
    with pytest.raises(ValueError, match=message):
        load_vit_checkpoint(fresh, tmp_path / "larger.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="is no checkpoint of a vision transformer"):
        load_vit_checkpoint(fresh, tmp_path / "list.pth")
    with pytest.raises(FileNotFoundError):
        load_vit_checkpoint(fresh, tmp_path / "missing.pth")
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())
