"""The whole detector: what each part says, its losses and gradients, and the layouts its weights come in."""

import argparse
import tempfile
from pathlib import Path

import ms_deform_attn
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from checks import check
from lightning_xai.nets.deformable_detr import DeformableDETR
from lightning_xai.nets.deformable_detr_checkpoints import load_checkpoint
from lightning_xai.tasks.detection_losses import SetCriterion
from lightning_xai.tasks.detection_postprocess import top_detections
from lightning_xai.tasks.matching import HungarianMatcher, PackedTargets

# The original repository's flags -> the network's arguments.
ARGUMENTS = {
    "backbone": "backbone",
    "dilation": "dilation",
    "position_embedding": "position_embedding",
    "num_feature_levels": "num_feature_levels",
    "enc_layers": "num_encoder_layers",
    "dec_layers": "num_decoder_layers",
    "dim_feedforward": "dim_feedforward",
    "hidden_dim": "hidden_dim",
    "nheads": "num_heads",
    "num_queries": "num_queries",
    "enc_n_points": "encoder_points",
    "dec_n_points": "decoder_points",
    "with_box_refine": "with_box_refine",
    "two_stage": "two_stage",
    "aux_loss": "aux_loss",
}


def build(config: dict) -> DeformableDETR:
    flags = config["flags"]
    arguments = {ours: flags[theirs] for theirs, ours in ARGUMENTS.items() if theirs in flags}
    net = DeformableDETR(
        num_classes=config.get("num_classes", 91), freeze_backbone=flags.get("lr_backbone", 1) <= 0, **arguments
    )
    return net.eval()


def load(net: DeformableDETR, content: dict, name: str = "checkpoint.pth") -> None:
    """Save `content` to a file and load it through the public loader."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(content, Path(folder) / name)
        load_checkpoint(net, Path(folder) / name)


def official(weights: dict[str, Tensor], config: dict) -> dict:
    args = argparse.Namespace(**config["flags"])
    return {"model": weights, "optimizer": {}, "lr_scheduler": {}, "epoch": 49, "args": args}


def batch_of(case) -> tuple[Tensor, Tensor]:
    """The case's images zero-padded at the bottom and right, and their padding mask."""
    images = [case.inputs[f"image_{i}"] for i in range(sum(k.startswith("image_") for k in case.inputs))]
    height, width = (max(image.shape[d] for image in images) for d in (1, 2))
    batch = torch.zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        batch[i, :, : image.shape[1], : image.shape[2]] = image
        mask[i, : image.shape[1], : image.shape[2]] = False
    return batch, mask


class OperatorCalls(TorchFunctionMode):
    """Keeps value, shapes, sampling locations and attention weights of every call of the operator."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is ms_deform_attn.ms_deform_attn_fused:
            value, shapes, points, offsets, logits = args
            locations = ms_deform_attn.sampling_locations(points, offsets, shapes)
            self.calls.append((value, shapes, locations, ms_deform_attn.attention_weights(logits)))
        return function(*args, **(kwargs or {}))


class Seen:
    """Inputs and outputs of chosen modules during a forward pass, in order of execution."""

    def __init__(self, net: torch.nn.Module, names: list[str]):
        self.inputs, self.outputs = {name: [] for name in names}, {name: [] for name in names}
        for name in names:
            net.get_submodule(name).register_forward_hook(self.keep(name))

    def keep(self, name: str):
        def hook(module, inputs, output):
            self.inputs[name].append(inputs)
            self.outputs[name].append(output)

        return hook


@check("deformable_detr/model")
def model(case):
    net = build(case.config)
    load(net, official(case.state_dict(), case.config))
    compare_trained_parameters(case, net)
    images, mask = batch_of(case)

    encoder = [f"transformer.encoder.layers.{i}" for i in range(len(net.transformer.encoder.layers))]
    decoder = [f"transformer.decoder.layers.{i}" for i in range(len(net.transformer.decoder.layers))]
    projections = [f"input_proj.{level}" for level in range(len(net.input_proj))]
    attentions = [f"{layer}.self_attn" for layer in encoder] + [f"{layer}.cross_attn" for layer in decoder]
    seen = Seen(net, ["backbone.0", "backbone.1", *projections, *encoder, *decoder, *attentions])
    with OperatorCalls() as operator:
        outputs = net(images, mask)

    case.compare("batch_mask", mask)
    compare_levels(case, seen, projections, outputs)
    compare_encoder(case, seen, encoder, operator.calls[: len(encoder)])
    compare_decoder(case, seen, decoder, operator.calls[len(encoder) :])
    compare_outputs(case, outputs)
    compare_training(case, net, outputs)
    compare_detections(case, outputs)


def compare_trained_parameters(case, net: DeformableDETR) -> None:
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    if frozen != set(case.info["frozen_parameters"]):
        case.failures.append(f"frozen parameters differ: {sorted(frozen ^ set(case.info['frozen_parameters']))}")


def compare_levels(case, seen: Seen, projections: list[str], outputs: dict) -> None:
    for level, feature_map in enumerate(seen.outputs["backbone.0"][0]):
        case.compare(f"backbone_{level}_every64ch", feature_map[:, ::64])
    masks = [inputs[0] for inputs in seen.inputs["backbone.1"]]
    positions = [p.permute(0, 3, 1, 2)[:, ::8] for p in seen.outputs["backbone.1"]]
    for level, (mask, position) in enumerate(zip(masks, positions, strict=True)):
        case.compare(f"src_{level}_every16ch", seen.outputs[projections[level]][0][:, ::16])
        case.compare(f"mask_{level}", mask)
        for name, image in (("img0", 0), ("lastimg", -1)):
            where = ~mask[image].expand(1, position.shape[1], -1, -1)
            case.compare(f"pos_{level}_every8ch_{name}", position[image][None], where=where)
    shapes = outputs["spatial_shapes"]
    case.compare("spatial_shapes", shapes)
    case.compare("level_start_index", shapes.prod(1).cumsum(0) - shapes.prod(1))
    case.compare("valid_ratios", outputs["valid_ratios"])
    padding = torch.cat([mask.flatten(1) for mask in masks], 1)
    case.compare("token_valid", ~padding[:, case.outputs["token_index"]])


def compare_encoder(case, seen: Seen, layers: list[str], calls: list[tuple]) -> None:
    tokens, valid = case.outputs["token_index"], case.outputs["token_valid"].bool()
    case.compare("token_index", tokens)
    case.compare("memory_tokens", seen.outputs[layers[-1]][0][:, tokens], where=valid)
    reference = seen.inputs[f"{layers[0]}.self_attn"][0][1]
    case.compare("encoder_reference_points_tokens", reference[:, tokens], where=valid)
    case.compare("enc0_value_tokens", calls[0][0].flatten(2)[:, tokens], where=valid)
    for i, (layer, (_, _, locations, weights)) in enumerate(zip(layers, calls, strict=True)):
        if f"enc{i}_out_tokens_every8ch" in case.outputs:
            case.compare(f"enc{i}_out_tokens_every8ch", seen.outputs[layer][0][:, tokens, ::8], where=valid)
            case.compare(f"enc{i}_sampling_locations_tokens", locations[:, tokens], where=valid)
            case.compare(f"enc{i}_attention_weights_tokens", weights[:, tokens], where=valid)


def compare_decoder(case, seen: Seen, layers: list[str], calls: list[tuple]) -> None:
    queries = case.outputs["query_index"]
    case.compare("query_index", queries)
    case.compare("hs_queries", torch.stack([seen.outputs[layer][0][:, queries] for layer in layers]))
    for i, (layer, (_, _, locations, weights)) in enumerate(zip(layers, calls, strict=True)):
        if f"dec{i}_sampling_locations_queries" in case.outputs:
            reference = seen.inputs[f"{layer}.cross_attn"][0][1]
            case.compare(f"dec{i}_sampling_locations_queries", locations[:, queries])
            case.compare(f"dec{i}_attention_weights_queries", weights[:, queries])
            case.compare(f"dec{i}_reference_points_input_queries", reference[:, queries])


def compare_outputs(case, outputs: dict) -> None:
    case.compare("init_reference_points", outputs["reference_points"][0])
    case.compare("inter_reference_points", torch.stack(outputs["reference_points"][1:]))
    case.compare("pred_logits", outputs["pred_logits"])
    case.compare("pred_boxes", outputs["pred_boxes"])
    if "aux_logits" in case.outputs:
        case.compare("aux_logits", torch.stack([o["pred_logits"] for o in outputs["aux_outputs"]]))
        case.compare("aux_boxes", torch.stack([o["pred_boxes"] for o in outputs["aux_outputs"]]))
    if "enc_boxes" in case.outputs:
        logits = outputs["enc_outputs"]["pred_logits"]
        case.compare("enc_logits_class0", logits[..., 0])
        case.compare("enc_logits_tokens", logits[:, case.outputs["token_index"]])
        case.compare("enc_boxes", outputs["enc_outputs"]["pred_boxes"])
        queries = outputs["pred_logits"].shape[1]
        case.compare("topk_proposals", logits[..., 0].topk(queries, 1).indices)


def compare_training(case, net: DeformableDETR, outputs: dict) -> None:
    flags = case.config["flags"]
    matcher = HungarianMatcher(flags["set_cost_class"], flags["set_cost_bbox"], flags["set_cost_giou"])
    criterion = SetCriterion(
        matcher,
        flags["cls_loss_coef"],
        flags["bbox_loss_coef"],
        flags["giou_loss_coef"],
        focal_alpha=flags["focal_alpha"],
    )
    targets = [
        {"boxes": case.inputs[f"target_boxes_{i}"], "labels": case.inputs[f"target_labels_{i}"]}
        for i in range(len(outputs["pred_logits"]))
    ]
    compare_matches(case, matcher, outputs, targets)

    losses = criterion(outputs, targets)
    for name, value in losses.as_dict().items():
        case.compare(f"loss.{name}", value)
    for name, weight in zip(losses.names, losses.weights.tolist(), strict=True):
        if weight != case.info["loss_weights"].get(name, 0.0):
            case.failures.append(f"weight {weight} of {name}, expected {case.info['loss_weights'].get(name, 0.0)}")
    case.compare("loss_total", losses.total)

    losses.total.backward()
    named = dict(net.named_parameters(remove_duplicate=False))
    case.compare("grad_norms", torch.stack([named[name].grad.norm() for name in case.info["grad_norm_names"]]))
    gradients = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.requires_grad}
    case.compare("grad_norm_total", torch.stack([g.norm() for g in gradients.values() if g is not None]).norm())
    without = [name for name, gradient in gradients.items() if gradient is None]
    if sorted(without) != sorted(case.info["trainable_without_grad"]):
        case.failures.append(f"trained without gradient: {without}")
    for name in case.outputs:
        if name.startswith("grad."):
            key = name.removeprefix("grad.").replace("enc0.", "transformer.encoder.layers.0.self_attn.")
            case.compare(name, named[key].grad)


def compare_matches(case, matcher: HungarianMatcher, outputs: dict, targets: list[dict]) -> None:
    layers = {"last": outputs}
    layers |= {f"aux{i}": layer for i, layer in enumerate(outputs.get("aux_outputs", []))}
    if "enc_outputs" in outputs:
        layers["enc"] = outputs["enc_outputs"]
    for name, layer in layers.items():
        packed = PackedTargets.pack(targets, layer["pred_logits"].device, layer["pred_logits"].shape[-1])
        if name == "enc":
            packed = packed.with_labels(torch.zeros_like(packed.labels))
        matches = matcher(layer["pred_logits"][None], layer["pred_boxes"][None], packed)
        for image in range(len(targets)):
            for side, indices in zip(("query", "target"), matches.of(0, image), strict=True):
                case.compare(f"match_{name}_img{image}_{side}", indices)


def compare_detections(case, outputs: dict) -> None:
    found = top_detections(outputs["pred_logits"], outputs["pred_boxes"], case.inputs["orig_size"])
    for name in ("scores", "labels", "boxes"):
        case.compare(f"post_{name}", found[name])


@check("deformable_detr/hf_key_map")
def transformers_layouts(case):
    weights = case.state_dict()
    images, mask = batch_of(case)
    for column in (1, 2):
        renamed = {}
        for row in case.info["key_map"]:
            rows = slice(None) if row[3] is None else slice(*row[3])
            renamed[row[column]] = weights[row[0]][rows].clone()
        net = build(case.config)
        load(net, renamed, "pytorch_model.bin")
        for key, tensor in net.state_dict().items():
            if not torch.equal(tensor, weights[key]):
                case.failures.append(
                    f"{key} differs when read by the names of '{case.info['key_map_columns'][column]}'"
                )
    with torch.no_grad():
        outputs = net(images, mask)
    case.compare("hf_logits", outputs["pred_logits"])
    case.compare("hf_pred_boxes", outputs["pred_boxes"])
