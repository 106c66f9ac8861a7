"""The README's table of methods and networks is what runs: every cell is tried, in both directions."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
from torch import nn

from lightning_xai.explain.explanation import explain
from lightning_xai.explain.methods import METHODS, method
from lightning_xai.explain.targets import Targets, class_targets, detection_targets, pair_targets
from lightning_xai.nets.clip import CLIP
from lightning_xai.nets.deformable_detr import DeformableDETR
from lightning_xai.nets.detr import DETR
from lightning_xai.nets.vit import ViT

README = (Path(__file__).parents[1] / "README.md").read_text()
CAPTUM = ("integrated_gradients", "gradient_x_input", "occlusion")
DETECTOR = {
    "num_classes": 5,
    "backbone": "timm:resnet18",
    "backbone_args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 48, 64], "stem_width": 8},
    "hidden_dim": 32,
    "num_heads": 4,
    "num_encoder_layers": 1,
    "num_decoder_layers": 3,
    "dim_feedforward": 64,
    "num_queries": 7,
}


class Explained(NamedTuple):
    """A small network of random weights, what it is run on, and what of its outputs is explained."""

    net: nn.Module
    inputs: tuple
    targets: Callable[[dict], Targets]


def vit(global_pool: str) -> Explained:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    net = ViT(timm.create_model("vit_tiny_patch16_224", global_pool=global_pool, **sizes)).eval()
    classes = torch.tensor([[0, 1], [3, 2]])
    return Explained(
        net, (images(32, 32),), lambda outputs: class_targets(outputs["logits"], classes, rows=net.readout(outputs))
    )


def transformers_vit() -> Explained:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    net = ViT(ViTForImageClassification(ViTConfig(intermediate_size=48, num_labels=5, **sizes))).eval()
    return Explained(
        net, (images(32, 32),), lambda outputs: class_targets(outputs["logits"], rows=net.readout(outputs))
    )


def clip() -> Explained:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 30, "max_position_embeddings": 8, "bos_token_id": 28, "eos_token_id": 29}
    vision = tower | {"image_size": 16, "patch_size": 4}
    net = CLIP(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))).eval()
    tokens = torch.tensor([[28, 3, 4, 29, 0, 0, 0, 0], [28, 7, 29, 0, 0, 0, 0, 0]])
    last = tokens.argmax(1)
    return Explained(net, (images(16, 16), tokens), lambda outputs: pair_targets(outputs["logits_per_image"], last))


def detr() -> Explained:
    return detector(DETR(**DETECTOR))


def deformable_detr() -> Explained:
    return detector(DeformableDETR(num_feature_levels=3, with_box_refine=True, **DETECTOR))


def detector(net: nn.Module) -> Explained:
    """Two queries of the first image and one of the second, which is padded."""
    net = net.eval()
    nn.init.normal_(net.query_embed.weight, std=3)  # so that queries differ and gradients of both signs reach each
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, :, 64:] = True
    samples, queries = torch.tensor([0, 0, 1]), torch.tensor([2, 5, 2])

    def targets(outputs: dict) -> Targets:
        return detection_targets(outputs["pred_logits"], samples, queries, num_classes=5)

    return Explained(net, (images(64, 96).masked_fill(mask[:, None], 0), mask), targets)


def images(h: int, w: int) -> torch.Tensor:
    return torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(0))


NETWORKS = {
    "ViT": lambda: vit("token"),
    "ViT, mean-pooled": lambda: vit("avg"),
    "transformers' ViT": transformers_vit,
    "CLIP": clip,
    "DETR": detr,
    "Deformable DETR": deformable_detr,
}
HEADER, TABLE = re.search(r"^\| method \|(.*CLIP.*)\|\n\|[-|]+\|\n((?:\|.*\|\n)+)", README, re.MULTILINE).groups()
ROWS = re.findall(r"^\| `(\w+)` \|(.*)\|$", TABLE, re.MULTILINE)


def columns(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")]


def test_the_table_lists_every_method_and_every_network():
    assert [name for name, _ in ROWS] == list(METHODS)
    assert columns(HEADER) == list(NETWORKS)
    assert {cell for _, row in ROWS for cell in columns(row)} <= {"✓", "–"}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name, row", ROWS)
def test_a_cell_of_the_table(name, row, network):
    """✓: finite relevance of every explained target, not all the same; –: one sentence says why not."""
    if name in CAPTUM and not find_spec("captum"):
        pytest.skip("captum is not installed")
    if network in ("CLIP", "transformers' ViT"):
        pytest.importorskip("transformers")
    torch.manual_seed(1)
    net, inputs, targets = NETWORKS[network]()
    works = dict(zip(NETWORKS, columns(row), strict=True))[network] == "✓"
    if not works:
        with pytest.raises(ValueError, match=r"\w+ .* \w+"):
            explain(net, inputs, targets, method(name))
        return
    with torch.no_grad():
        explanation = explain(net, inputs, targets, method(name))
    size = inputs[0].shape[-2:]
    heat = explanation.on_pixels(tuple(size))
    assert heat.shape == (len(explanation.samples), *size)
    assert heat.isfinite().all() and not heat.requires_grad
    assert heat.amax() > heat.amin()
    assert all(parameter.grad is None for parameter in net.parameters())
