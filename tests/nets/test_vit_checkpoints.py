"""Checkpoints of vision transformers: every layout gives the same weights, and what does not fit is named."""

import argparse

import pytest
import torch
from torch import nn

from lightning_xai.nets.vit import ViT, build_vit
from lightning_xai.nets.vit_checkpoints import interpolate_positions, load_for_finetuning, load_vit_checkpoint

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


def pretrained(path, size: int = 16, **extra) -> dict:
    """Write a file as MAE's pre-training does, an encoder with class token and last norm; returns its weights."""
    weights = small_vit(1, img_size=size, global_pool="token").net.state_dict()
    weights = {k: v for k, v in weights.items() if not k.startswith("head.")} | extra
    torch.save({"model": weights, "epoch": 799, "args": argparse.Namespace(mask_ratio=0.75)}, path)
    return weights


DECODER = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 12)}


@pytest.mark.parametrize("extra", [{}, DECODER], ids=["encoder", "with decoder"])
@pytest.mark.parametrize("pool", ["avg", "token"])
def test_finetuning_starts_from_a_pretrained_encoder(tmp_path, pool, extra):
    weights = pretrained(tmp_path / "mae.pth", **extra)
    fresh = small_vit(2, global_pool=pool)
    nn.init.ones_(fresh.net.head.bias)
    load_for_finetuning(fresh, tmp_path / "mae.pth")
    own = fresh.net.state_dict()
    for name, tensor in own.items():
        if name.startswith("head."):
            assert tensor.abs().max() < 1e-3 and (name != "head.bias" or not tensor.any())
        elif not name.startswith("fc_norm."):
            assert torch.equal(tensor, weights[name]), name
    assert ("norm.weight" in own) == (pool == "token")


def test_finetuning_starts_from_our_own_pretraining(tmp_path):
    weights = pretrained(tmp_path / "mae.pth", **DECODER)
    torch.save({"state_dict": {f"net.{name}": tensor for name, tensor in weights.items()}}, tmp_path / "ours.ckpt")
    fresh = small_vit(2, global_pool="avg")
    load_for_finetuning(fresh, tmp_path / "ours.ckpt")
    assert torch.equal(fresh.net.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])


def test_networks_of_transformers_are_finetuned_too(tmp_path):
    import transformers

    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}

    def build(labels: int) -> ViT:
        config = transformers.ViTConfig(image_size=16, patch_size=8, num_labels=labels, **sizes)
        return ViT(transformers.ViTForImageClassification(config)).eval()

    trained, fresh, images = build(7), build(3), torch.randn(1, 3, 16, 16)
    torch.save(trained.net.state_dict(), tmp_path / "hf.pth")
    load_for_finetuning(fresh, tmp_path / "hf.pth")
    assert torch.equal(fresh(images)["features"], trained(images)["features"])
    assert fresh(images)["logits"].abs().max() < 1e-3


def test_the_new_head_has_the_published_spread(tmp_path):
    pretrained(tmp_path / "mae.pth")
    fresh = small_vit(2, num_classes=2000)
    load_for_finetuning(fresh, tmp_path / "mae.pth")
    assert fresh.net.head.weight.std().item() == pytest.approx(2e-5, rel=0.05)


def test_finetuning_from_a_trained_classifier_takes_all_but_its_head(tmp_path):
    """The reference's assertion refuses such files; its norm after pooling is kept here."""
    trained = small_vit(1, global_pool="avg", num_classes=9)
    nn.init.normal_(trained.net.fc_norm.weight)
    torch.save({"state_dict": {f"net.net.{k}": v for k, v in trained.net.state_dict().items()}}, tmp_path / "ours.ckpt")
    fresh = small_vit(2, global_pool="avg")
    load_for_finetuning(fresh, tmp_path / "ours.ckpt")
    assert torch.equal(fresh.net.fc_norm.weight, trained.net.fc_norm.weight)
    assert fresh.net.head.weight.shape == (5, 12) and fresh.net.head.weight.abs().max() < 1e-3


def test_positions_of_another_size_are_interpolated(tmp_path):
    weights = pretrained(tmp_path / "mae.pth", size=32)
    fresh = small_vit(2, img_size=48, global_pool="avg")
    load_for_finetuning(fresh, tmp_path / "mae.pth")
    positions = fresh.net.pos_embed
    assert positions.shape == (1, 1 + 36, 12) and torch.equal(positions[:, :1], weights["pos_embed"][:, :1])
    # 4 r + c in row r and column c: its mean stays, and rows differ four times as much as columns
    plane = torch.arange(16.0).view(1, 16, 1).expand(1, 16, 12)
    grid = interpolate_positions(torch.cat([torch.zeros(1, 1, 12), plane], 1), 1 + 64)[0, 1:, 0].view(8, 8)
    assert torch.allclose((grid[-1] - grid[0]).mean(), 4 * (grid[:, -1] - grid[:, 0]).mean(), atol=1e-4)
    assert torch.allclose(grid.mean(), torch.tensor(7.5), atol=1e-4)


def test_what_cannot_be_finetuned_is_named_and_changes_nothing(tmp_path):
    fresh = small_vit(2)
    before = {k: v.clone() for k, v in fresh.net.state_dict().items()}
    torch.save({"state_dict": {"transformer.weight": torch.zeros(1)}}, tmp_path / "detr.pth")
    with pytest.raises(ValueError, match=r"missing cls_token, .* and \d+ more; unexpected transformer.weight"):
        load_for_finetuning(fresh, tmp_path / "detr.pth")
    pretrained(tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"other shapes .*cls_token \(1, 1, 12\) instead of \(1, 1, 24\)"):
        load_for_finetuning(small_vit(2, embed_dim=24), tmp_path / "wide.pth")
    torch.save(small_vit(1, global_pool="avg").net.state_dict(), tmp_path / "pooled.pth")
    with pytest.raises(ValueError, match=r"missing norm\.weight, norm\.bias; unexpected fc_norm"):
        load_for_finetuning(fresh, tmp_path / "pooled.pth")
    assert all(torch.equal(v, before[k]) for k, v in fresh.net.state_dict().items())
