"""Classifiers that masked autoencoders are fine-tuned to: forward, backward, positions of other image sizes."""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from reference_arrays import tolerate_stated

from checks import check
from lightning_xai.explain.recording import record
from lightning_xai.explain.targets import class_targets
from lightning_xai.nets.vit import ViT, build_vit
from lightning_xai.nets.vit_checkpoints import interpolate_positions, load_vit_checkpoint

NETWORKS = {"vit_base_patch16": "patch16_224", "vit_large_patch16": "patch16_224", "vit_huge_patch14": "patch14_224"}
SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "drop_path_rate")
PATCH = slice(96, 128)  # rows and columns of the large cases' input gradient


def build(config: dict) -> ViT:
    """The network of a case's configuration, with random weights."""
    name = config.get("model", "vit_base_patch16")
    arguments = {key: config[key] for key in SIZES if key in config} | {"num_classes": config["num_classes"]}
    pool = "avg" if config["global_pool"] else "token"
    return build_vit(f"timm:{name.rpartition('_')[0]}_{NETWORKS[name]}", arguments | {"global_pool": pool})


def build_with_weights(case) -> ViT:
    """The network of the case's checkpoint, read from a file in the original's layout."""
    vit = build(case.config)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vit.pth"
        torch.save({"model": case.state_dict(), "epoch": 99, "args": argparse.Namespace(blr=5e-4)}, file)
        load_vit_checkpoint(vit, file)
    return vit


@check("sa3/mae_vit")
def mae_vit(case):
    tolerate_stated(case)
    vit, labels = build_with_weights(case), case.inputs["label"]
    images = case.inputs["image"].requires_grad_()
    blocks = [vit.get_submodule(name) for name in vit.blocks()]
    entered, left = [], []
    blocks[0].register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    for block in blocks:
        block.register_forward_hook(lambda _, given, output: left.append(output))

    with record(vit, gradients=None) as recording:
        outputs = vit(images)
        targets = class_targets(outputs["logits"], labels, rows=vit.readout(outputs))
    slopes = recording.reduced_gradients(targets, lambda record, gradient: gradient)
    loss = F.cross_entropy(outputs["logits"], labels)
    named = {name.removeprefix("net."): parameter for name, parameter in vit.named_parameters()}
    names = case.info["strings"]["param_names"]
    gradients = torch.autograd.grad(loss, [named[name] for name in names], retain_graph=True)
    (image_gradient,) = torch.autograd.grad(targets.scores.sum(), images)

    tokens, through = entered[0], torch.stack(left, 1)
    some = [0, 1, tokens.shape[1] // 2, tokens.shape[1] - 1]
    attention = torch.stack([recording[module].probabilities for module in recording], 1)
    attention_gradient = torch.stack([slopes[module] for module in recording], 1)
    found = {
        "pooled": outputs["features"],
        "logits": outputs["logits"],
        "loss": loss,
        "embeddings": tokens,
        "embeddings_tokens": tokens[:, some],
        "block_outputs": through,
        "block_outputs_tokens": through[:, :, some],
        "block_outputs_token_mean": through.mean(2),
        "attention": attention,
        "attention_cls_row": attention[:, :, :, 0],
        "attention_grad": attention_gradient,
        "attention_grad_mean_row": attention_gradient.mean(-2),
        "input_grad": image_gradient,
        "input_grad_patch": image_gradient[..., PATCH, PATCH],
        "param_grad_norm": torch.stack([gradient.double().norm() for gradient in gradients]),
    }
    for name in set(found) & set(case.outputs):
        case.compare(name, found[name])


@check("sa3/mae_pos_embed_interp")
def pos_embed_interp(case):
    tolerate_stated(case)
    for old, new in case.config["pairs"]:
        name = f"pos_embed_{old}_to_{new}"
        case.compare(name, interpolate_positions(case.inputs[name], 1 + new * new))
