"""Which parameters decay and how fast each layer learns, counted by hand on networks of two blocks."""

import pytest
import timm
from torch import nn

from lightning_xai.nets.vit import ViT, build_vit
from lightning_xai.tasks.layer_decay import layer_decay_groups, weight_decay_groups

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 3}


def of_parameters(groups: list[dict]) -> dict[str, tuple[float, float]]:
    """(lr_scale, weight_decay) of each parameter; none may be in two groups."""
    found = {}
    for group in groups:
        assert len(group["params"]) == len(group["names"])
        for name in group["names"]:
            assert name not in found
            found[name] = (group["lr_scale"], group["weight_decay"])
    return found


@pytest.mark.parametrize("pool, norm", [("avg", "net.fc_norm"), ("token", "net.norm")])
def test_layers_of_a_vision_transformer(pool, norm):
    vit = build_vit("timm:vit_tiny_patch16_224", SMALL | {"global_pool": pool})
    found = of_parameters(layer_decay_groups(vit, vit.blocks(), layer_decay=0.5, weight_decay=0.1))
    assert set(found) == {name for name, _ in vit.named_parameters()}
    expected = {
        "net.cls_token": (0.125, 0.0),
        "net.pos_embed": (0.125, 0.0),
        "net.patch_embed.proj.weight": (0.125, 0.1),
        "net.patch_embed.proj.bias": (0.125, 0.0),
        "net.blocks.0.norm1.weight": (0.25, 0.0),
        "net.blocks.0.attn.qkv.weight": (0.25, 0.1),
        "net.blocks.1.mlp.fc2.weight": (0.5, 0.1),
        f"{norm}.weight": (1.0, 0.0),
        "net.head.weight": (1.0, 0.1),
        "net.head.bias": (1.0, 0.0),
    }
    assert {name: found[name] for name in expected} == expected


def test_networks_of_transformers_have_the_same_layers():
    import transformers

    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_labels=3, **sizes)
    vit = ViT(transformers.ViTForImageClassification(config))
    found = of_parameters(layer_decay_groups(vit, vit.blocks(), 0.5, 0.1))
    assert found["net.vit.embeddings.cls_token"] == (0.125, 0.0)
    assert found["net.vit.embeddings.position_embeddings"] == (0.125, 0.0)
    assert found["net.vit.embeddings.patch_embeddings.projection.weight"] == (0.125, 0.1)
    assert found["net.classifier.weight"] == (1.0, 0.1) and found["net.vit.layernorm.weight"] == (1.0, 0.0)
    first, second = vit.blocks()
    for name, group in found.items():
        if name.startswith((f"{first}.", f"{second}.")):
            assert group[0] == (0.25 if name.startswith(f"{first}.") else 0.5), name


def test_frozen_parameters_are_left_out():
    vit = build_vit("timm:vit_tiny_patch16_224", SMALL)
    for name, parameter in vit.named_parameters():
        parameter.requires_grad = "head" in name
    groups = layer_decay_groups(vit, vit.blocks(), 0.5, 0.1)
    assert of_parameters(groups) == {"net.head.weight": (1.0, 0.1), "net.head.bias": (1.0, 0.0)}
    assert sorted(n for group in weight_decay_groups(vit, 0.1) for n in group["names"]) == [
        "net.head.bias",
        "net.head.weight",
    ]


def test_groups_of_pre_training_decay_tokens():
    net = timm.create_model("vit_tiny_patch16_224", **SMALL)
    found = of_parameters(weight_decay_groups(net, 0.1))
    assert set(found) == {name for name, _ in net.named_parameters()}
    assert found["cls_token"] == (1.0, 0.1) and found["blocks.0.attn.qkv.weight"] == (1.0, 0.1)
    assert found["blocks.0.attn.qkv.bias"] == (1.0, 0.0) and found["norm.weight"] == (1.0, 0.0)
    assert len(weight_decay_groups(nn.LayerNorm(3), 0.1)) == 1
