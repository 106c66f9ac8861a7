"""DETR and its explanations: the detector, padded batches, every method's maps and the masks made of them."""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from checks import check
from lightning_xai.evaluate.relevance_masks import (
    gray_levels,
    kept_queries,
    otsu_masks,
    otsu_threshold,
    stretch,
)
from lightning_xai.explain.generic_relevance import GenericRelevance, positive_gradient_attention
from lightning_xai.explain.generic_relevance_lrp import GenericRelevanceLRP
from lightning_xai.explain.gradcam import AttentionGradCAM
from lightning_xai.explain.partial_lrp import PartialLRP
from lightning_xai.explain.raw_attention import RawAttention
from lightning_xai.explain.recording import Recording, record
from lightning_xai.explain.rollout import Rollout
from lightning_xai.explain.site_relevance import (
    positive_gradient_relevance,
    reduced_gradients_and_relevances,
    ruled_recording,
)
from lightning_xai.explain.targets import Targets, detection_targets
from lightning_xai.explain.transformer_attribution import TransformerAttribution
from lightning_xai.nets.detr import DETR
from lightning_xai.nets.detr_checkpoints import load_checkpoint
from lightning_xai.tasks.detr_losses import SoftmaxMatcher, SoftmaxSetCriterion
from lightning_xai.tasks.matching import PackedTargets

# The reference's flags -> the network's arguments.
ARGUMENTS = {
    "backbone": "backbone",
    "dilation": "dilation",
    "position_embedding": "position_embedding",
    "enc_layers": "num_encoder_layers",
    "dec_layers": "num_decoder_layers",
    "dim_feedforward": "dim_feedforward",
    "hidden_dim": "hidden_dim",
    "nheads": "num_heads",
    "num_queries": "num_queries",
    "aux_loss": "aux_loss",
}
# The reference's names of methods.
METHODS = {
    "ours_no_lrp": GenericRelevance(),
    "ours_no_lrp_no_norm": GenericRelevance(normalise=False),
    "ablation_no_self_in_10": GenericRelevance(self_in_cross=False),
    "ablation_no_aggregation": GenericRelevance(aggregate=False),
    "raw_attn": RawAttention(),
    "attn_gradcam": AttentionGradCAM(),
    "rollout": Rollout(),
}
# These need a forward pass under rules, in float64: relevance of this kind is badly conditioned.
RULES = "chefer_conserving"
LRP_METHODS = {
    "ours_with_lrp": GenericRelevanceLRP(),
    "transformer_att": TransformerAttribution(rules=RULES),
    "partial_lrp": PartialLRP(rules=RULES, positive=False, scaled=True),
}
PARTS = {"enc": ("image", "image"), "dec_self": ("query", "query"), "dec_cross": ("query", "image")}
FORWARD = ("input_proj", "memory", "pred_", "aux_", "official_", "losses", "pos", "enc_attn_layer0")


def build(case) -> DETR:
    config = case.config
    arguments = {ours: config[theirs] for theirs, ours in ARGUMENTS.items() if theirs in config}
    net = DETR(num_classes=config["num_classes_plus_no_object"] - 1, **arguments)
    content = {"model": case.state_dict(), "optimizer": {}, "epoch": 299, "args": argparse.Namespace(**config)}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(content, Path(folder) / "checkpoint.pth")
        load_checkpoint(net, Path(folder) / "checkpoint.pth")
    return net.eval()


def set_tolerances(case) -> None:
    """The suggestion of the cases: errors measured against float64, times 10 for forward passes and 20 for the rest."""
    measured = "per_array" in case.info["tolerance"]
    rules = case.info["tolerance"]["per_output"] = {}
    for name in case.outputs:
        error = measured_error(case, name)
        forward = name.startswith(FORWARD) or name.endswith(("_attn", "_attn_mean", "_attn_last"))
        if name.startswith("f64_"):
            rules[name] = {"rtol": 1e-5, "atol": 1e-6 * float(case.outputs[name].abs().max())}
        elif name.startswith("loss_"):
            rules[name] = {"rtol": 1e-4, "atol": 1e-5}
        elif name.startswith("boxes"):
            rules[name] = {"atol": 1e-3}  # pixels
        elif name.startswith("coco_"):
            rules[name] = {"atol": 1e-6}
        elif not measured:
            rules[name] = {"atol": 1e-4}
        elif forward and not name.startswith("lrp_"):
            rules[name] = {"atol": 1e-5 + 10 * error}
        else:
            rules[name] = {"atol": 20 * error}


@check("chefer/detr")
def detr(case):
    set_tolerances(case)
    if "official_pred_logits" in case.outputs:
        padded_batch(case)
    else:
        explanations(case)


def explanations(case) -> None:
    net, images = build(case), case.inputs["image"]
    mask = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    seen = {}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.__setitem__(name, output))
        for name, module in (("input_proj", net.input_proj), ("memory", net.transformer.encoder))
    ]
    config = case.config
    with record(net, gradients=True) as recording:
        outputs = net(images, mask)
        targets = chosen_targets(case, outputs["pred_logits"])
    for hook in hooks:
        hook.remove()
    case.compare("input_proj", seen["input_proj"])
    case.compare("memory", seen["memory"].transpose(1, 2).reshape(seen["input_proj"].shape))
    compare_outputs(case, outputs)
    queries = targets["kept"].rows["query"].tolist()
    if queries != config["kept_queries"]:
        case.failures.append(f"kept queries {queries}, expected {config['kept_queries']}")

    shape = tuple(outputs["spatial_shapes"][0].tolist())
    compare_methods(case, METHODS, recording, targets, shape)
    gradients = recording.reduced_gradients(targets["A"], lambda record, gradient: gradient)
    compare_attention(case, recording, gradients, config["qA"])
    compare_rules(case, recording, recording.reduced_gradients(targets["A"], positive_gradient_attention))

    with ruled_recording(net.double(), RULES) as ruled:
        logits = net(images.double(), mask)["pred_logits"]
        targets = chosen_targets(case, logits)
    compare_methods(case, LRP_METHODS, ruled, targets, shape)
    relevances = reduced_gradients_and_relevances(ruled, targets["A"], lambda record, gradient, relevance: relevance)
    compare_lrp(case, ruled, relevances, config["qA"])
    averages = reduced_gradients_and_relevances(ruled, targets["A"], positive_gradient_relevance)
    compare_squares(case, "lrp_", ruled, averages)


def chosen_targets(case, logits: Tensor) -> dict[str, Targets]:
    """The kept queries and their classes, query A and its class, query B and the class that the case gives."""
    a, b, label = (torch.tensor([case.config[name]]) for name in ("qA", "qB", "classB"))
    first = torch.tensor([0])
    return {
        "kept": detection_targets(logits, *kept_queries(logits)),
        "A": detection_targets(logits, first, a, num_classes=logits.shape[-1] - 1),
        "B": detection_targets(logits, first, b, label),
    }


def compare_methods(case, methods: dict, recording: Recording, targets: dict, shape: tuple[int, int]) -> None:
    for name, method in methods.items():
        maps = method(recording, targets["kept"])["image"]
        compare_maps(case, name, maps, shape)
        for output, wanted in ((f"mapB_{name}", "B"), (f"f64_map_{name}", "kept")):
            if output in case.outputs:
                found = maps if wanted == "kept" else method(recording, targets[wanted])["image"][0]
                case.compare(output, found)


def compare_outputs(case, outputs: dict) -> None:
    case.compare("pred_logits", outputs["pred_logits"])
    case.compare("pred_boxes", outputs["pred_boxes"])
    if "aux_logits" in case.outputs:
        case.compare("aux_logits", torch.stack([layer["pred_logits"] for layer in outputs["aux_outputs"]]))
        case.compare("aux_boxes", torch.stack([layer["pred_boxes"] for layer in outputs["aux_outputs"]]))


def compare_maps(case, method: str, maps: Tensor, shape: tuple[int, int]) -> None:
    """The raw map, and each step on the way to its mask; gray levels may differ by one, see the case's tolerance."""
    case.compare(f"map_{method}", maps)
    maps = maps.float().unflatten(1, shape)
    scaled, gray = stretch(maps), gray_levels(maps).long()
    theirs = {name: case.outputs[f"{name}_{method}"] for name in ("scaled", "gray", "otsu", "mask")}
    flat = case.outputs[f"map_{method}"]
    constant = (flat.amax(1) == flat.amin(1))[:, None, None].expand(scaled.shape)  # 0 / 0 when stretched
    case.compare(f"scaled_{method}", scaled, where=~constant)
    measured = measured_error(case, f"scaled_{method}")
    spread = (maps.amax((1, 2)) - maps.amin((1, 2)))[:, None, None]
    noise = constant & (spread <= 40 * measured_error(case, f"map_{method}"))  # stretched, it would look like a map
    near = noise | ((gray - theirs["gray"]).abs() <= 1 + int(2 * measured))
    case.compare(f"gray_{method}", torch.where(near, theirs["gray"], gray))
    # from the reference's gray levels threshold and mask must be exactly its own
    threshold = otsu_threshold(theirs["gray"].to(torch.uint8))
    case.compare(f"otsu_{method}", threshold)
    case.compare(f"mask_{method}", (theirs["gray"] > threshold[:, None, None]).long() * 255)
    clear = (theirs["scaled"] - (theirs["otsu"][:, None, None] + 1)).abs() >= 0.5 + 2 * measured
    masks = otsu_masks(maps).masked_fill(noise, False)
    masks = forgive_cells(case, method, masks, theirs["mask"] > 0)
    case.compare(f"mask_{method}", masks.long() * 255, where=clear | constant)


def measured_error(case, name: str) -> float:
    """How far the reference's float32 numbers are from its float64 ones."""
    return case.info["tolerance"].get("per_array", {}).get(name, {}).get("measured_abs", 0.0)


def forgive_cells(case, method: str, masks: Tensor, theirs: Tensor) -> Tensor:
    """The reference's masks where ours differ in about as few cells as its float32 masks differ from float64.

    What is made of the masks can then be compared exactly.
    """
    flips = case.info["tolerance"].get("mask_pixels_differing_f32_f64", {}).get(method, 0)
    return theirs if (masks != theirs).sum() <= 2 * flips + (method in LRP_METHODS) else masks


def compare_attention(case, recording: Recording, gradients: dict[str, Tensor], query: int) -> None:
    """Attention and its gradients, all of it or the parts that the case holds."""
    for part, (writes, reads) in PARTS.items():
        records = recording.of(writes=writes, reads=reads)
        attention = torch.stack([r.probabilities[0] for r in records])  # (layers, H, Q, K)
        gradient = torch.stack([gradients[r.site.module][0] for r in records])
        arrays = {
            f"{part}_attn": attention,
            f"{part}_attn_mean": attention.mean(1),
            f"{part}_attn_last": attention[-1],
            f"{part}_attn_grad": gradient,
            f"{part}_grad_row": gradient[:, :, query],
            f"{part}_cam": (gradient * attention).clamp(min=0).mean(1),
        }
        for name in arrays.keys() & case.outputs.keys():
            case.compare(name, arrays[name])


def compare_lrp(case, recording: Recording, relevances: dict[str, Tensor], query: int) -> None:
    """Relevance at the attention weights."""
    for part, (writes, reads) in PARTS.items():
        relevance = torch.stack([relevances[r.site.module][0] for r in recording.of(writes=writes, reads=reads)])
        arrays = {
            f"lrp_{part}_attn": relevance,
            f"lrp_{part}_row": relevance[:, :, query],
            f"lrp_{part}_mean": relevance.mean(1),
            f"lrp_{part}_last": relevance[-1],
        }
        for name in arrays.keys() & case.outputs.keys():
            case.compare(name, arrays[name])


def compare_rules(case, recording: Recording, averages: dict[str, Tensor]) -> None:
    """What each decoder layer adds, and which of it is lost because a row has the sum 0."""
    layers = compare_squares(case, "", recording, averages)
    names = ("R_qi_after_layer", "rule10_addition", "rule10_nan_count", "zero_rows_Rqq", "zero_rows_Rii")
    for name, values in zip(names, zip(*layers, strict=True), strict=True):
        case.compare(name, torch.stack(values))


def compare_squares(case, prefix: str, recording: Recording, averages: dict[str, Tensor]) -> list[tuple]:
    """The reference's square matrices, made here of our head averages; our methods propagate single rows of them."""

    def of(part: str) -> list[Tensor]:
        writes, reads = PARTS[part]
        return [averages[r.site.module][0] for r in recording.of(writes=writes, reads=reads)]

    r_ii = torch.eye(len(of("enc")[0]), dtype=of("enc")[0].dtype)
    for average in of("enc"):
        r_ii = r_ii + average @ r_ii
    case.compare(f"{prefix}R_ii", r_ii)
    r_qq = torch.eye(len(of("dec_self")[0]), dtype=r_ii.dtype)
    r_qi = r_ii.new_zeros(len(r_qq), len(r_ii))
    layers = []
    for own, cross in zip(of("dec_self"), of("dec_cross"), strict=True):
        r_qq, r_qi = r_qq + own @ r_qq, r_qi + own @ r_qi
        product = normalised(r_qq).T @ cross @ normalised(r_ii)
        addition = product.nan_to_num(0.0)
        r_qi = r_qi + addition
        layers.append((r_qi, addition, product.isnan().sum(), zero_rows(r_qq), zero_rows(r_ii)))
    case.compare(f"{prefix}R_qq", r_qq)
    return layers


def normalised(relevance: Tensor) -> Tensor:
    """Equations 8 and 9: rows of R - I divided by their sums, plus I."""
    identity = torch.eye(len(relevance), dtype=relevance.dtype)
    rest = relevance - identity
    return rest / rest.sum(1, keepdim=True) + identity


def zero_rows(relevance: Tensor) -> Tensor:
    return ((relevance - torch.eye(len(relevance), dtype=relevance.dtype)).sum(1) == 0).sum()


def padded_batch(case) -> None:
    net = build(case)
    images = [case.inputs[f"image{i}"] for i in range(sum(k.startswith("image") for k in case.inputs))]
    height, width = (max(image.shape[d] for image in images) for d in (1, 2))
    batch = torch.zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        batch[i, :, : image.shape[1], : image.shape[2]] = image
        mask[i, : image.shape[1], : image.shape[2]] = False
    case.compare("pad_mask", mask)

    seen = {}
    hook = net.backbone[1].register_forward_hook(lambda module, inputs, output: seen.update(mask=inputs[0], pos=output))
    with torch.no_grad():
        official = net(batch, mask)
    hook.remove()
    case.compare("feature_mask", seen["mask"])
    case.compare("pos", seen["pos"].permute(0, 3, 1, 2))
    case.compare("official_pred_logits", official["pred_logits"])
    case.compare("official_pred_boxes", official["pred_boxes"])

    with torch.no_grad(), record(net) as recording:  # the reference's attention sees padding
        tokens = net.input_proj(net.backbone[0](batch)[-1]).flatten(2).transpose(1, 2)
        contents = net.transformer(tokens, seen["pos"].flatten(1, 2), net.query_embed.weight, None)
        reference = net.report(contents)
    case.compare("pred_logits", reference["pred_logits"])
    case.compare("pred_boxes", reference["pred_boxes"])
    encoder, cross = (recording.of(writes=writes, reads="image") for writes in ("image", "query"))
    case.compare("enc_attn_layer0", encoder[0].probabilities.flatten(0, 1))
    case.compare("dec_cross_attn_last", cross[-1].probabilities.flatten(0, 1))

    targets = [{"boxes": case.inputs[f"boxes{i}"], "labels": case.inputs[f"labels{i}"]} for i in range(len(images))]
    for name, outputs in (("losses", reference), ("official_losses", official)):
        losses = SoftmaxSetCriterion()(outputs, targets).as_dict()
        case.compare(name, torch.stack([losses[loss] for loss in case.config["loss_names"]]))
    packed = PackedTargets.pack(targets, batch.device, official["pred_logits"].shape[-1] - 1)
    matches = SoftmaxMatcher()(official["pred_logits"][None], official["pred_boxes"][None], packed)
    pairs = [matches.of(0, i) for i in range(len(images))]
    case.compare("match_query", torch.cat([query for query, _ in pairs]))
    case.compare("match_target", torch.cat([target for _, target in pairs]))
