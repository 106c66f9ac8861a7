"""Vision transformers: every explanation that Chefer et al. offer for them."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from reference_arrays import compare_defined, measured, tolerate
from torch import Tensor

from checks import check
from lightning_xai.explain.explanation import min_max
from lightning_xai.explain.generic_relevance import GenericRelevance, positive_gradient_attention
from lightning_xai.explain.gradcam import AttentionGradCAM
from lightning_xai.explain.input_relevance import FullLRP
from lightning_xai.explain.linear_maps import DenseMap
from lightning_xai.explain.method import Method
from lightning_xai.explain.partial_lrp import PartialLRP
from lightning_xai.explain.raw_attention import RawAttention
from lightning_xai.explain.recording import Recording, record
from lightning_xai.explain.relevance_tables import STABILISER
from lightning_xai.explain.rollout import Rollout
from lightning_xai.explain.row_propagation import row_of_product
from lightning_xai.explain.site_relevance import reduced_relevances
from lightning_xai.explain.targets import Targets, class_targets
from lightning_xai.explain.transformer_attribution import TransformerAttribution
from lightning_xai.nets.vit import ViT, build_vit

ARGUMENTS = ("img_size", "patch_size", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias")
TABLES = {"lrp_ours": "chefer", "lrp_orig": "plain"}  # by the reference's two sets of layers
LRP_NORM_EPS = 1e-5  # of the last norm in the reference's LRP networks, 1e-6 in its others
FLOAT32_ROUNDING = 2.0**-24


def build(case) -> ViT:
    """The network of the case's checkpoint, read from a file."""
    arguments = {name: case.config[name] for name in ARGUMENTS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vit.pth"
        torch.save(case.state_dict(), file)
        return build_vit("timm:vit_base_patch16_224", arguments, file)


def build_for_lrp(case) -> ViT:
    """The same with the reference's other norm; in float64, because LRP divides by sums near zero."""
    net = build(case).double()
    net.net.norm.eps = LRP_NORM_EPS
    return net


@check("chefer/vit")
def vit(case):
    tolerate(case, lambda name: allowed(case, name))
    net, image = build(case), case.inputs["image"]
    with record(net, gradients=True) as recording:
        outputs = net(image)
        targets = class_targets(outputs["logits"], case.config["class_idx"])
        top = class_targets(outputs["logits"])
    case.compare("logits", outputs["logits"])
    if int(outputs["logits"].argmax()) != case.config["top1"]:
        case.failures.append(f"predicted class {int(outputs['logits'].argmax())}, expected {case.config['top1']}")
    case.compare("mm_relevance", patches(GenericRelevance()(recording, targets)))
    case.compare("mm_relevance_top1", patches(GenericRelevance()(recording, top)))
    gradcam = patches(AttentionGradCAM(mean_over="row")(recording, targets))
    compare_defined(case, "attn_gradcam", min_max(gradcam[None, None])[0, 0])
    for start in (0, 1):
        case.compare(f"rollout_start{start}", patches(Rollout(start_layer=start)(recording, targets)))
    compare_attention(case, recording, targets)

    net = build_for_lrp(case)
    for prefix, rules in TABLES.items():
        compare_lrp(case, net, image.double(), prefix, rules)


def allowed(case, name: str) -> tuple[float, float]:
    """Of each array, in parts of its largest value: 1e-4 for gradients, for LRP what float32 made of it.

    Our LRP is in float64, so it is as far from the reference's float32 array as that is from its float64 one. There
    the last digits depend on where a quotient is stabilised by 1e-9, which is a sixtieth of what float32 rounds to: at
    most a sixtieth of what float32 made of the array is allowed.
    """
    if name.startswith("f64_"):
        return 0.0, max(measured(case, name.removeprefix("f64_")) * STABILISER / FLOAT32_ROUNDING, 1e-5)
    if name.startswith("lrp_"):
        return 1.1 * measured(case, name, "measured_abs"), 1e-5
    return 1e-5, 1e-4


def patches(relevance: Mapping[str, Tensor]) -> Tensor:
    """What the first target says of the patches: (N,), without the class token."""
    return relevance["image"][0, 1:]


def compare_all(case, found: Mapping[str, Callable[[], Tensor]]) -> None:
    """Compare those arrays that the case has."""
    for name, value in found.items():
        if name in case.outputs:
            case.compare(name, value())


def compare_attention(case, recording: Recording, targets: Targets) -> None:
    """Attention, gradients, rule 5 and relevance after each layer: whole in small cases, else the class token's row."""
    attention = torch.cat([recording[module].probabilities for module in recording])
    gradients = torch.cat(list(recording.reduced_gradients(targets, lambda record, gradient: gradient).values()))
    cams = torch.cat(list(recording.reduced_gradients(targets, positive_gradient_attention).values()))
    identity = torch.eye(cams.shape[-1])[None]
    maps = [DenseMap(cam[None]) for cam in cams]
    after = torch.cat([row_of_product(maps[: i + 1], identity, 1.0, normalise=False) for i in range(len(maps))])
    whole = {
        "attn": lambda: attention,
        "attn_grad": lambda: gradients,
        "rule5_cam": lambda: cams,
        "R_after_layer": lambda: after,
    }
    rows = {
        "attn_cls": lambda: attention[:, :, 0],
        "attn_grad_cls": lambda: gradients[:, :, 0],
        "attn_grad_abs_sum": lambda: gradients.abs().sum((-2, -1)),
        "attn_row_entropy": lambda: torch.special.entr(attention).sum(-1).mean(-1),
        "rule5_cam_cls": lambda: cams[:, 0],
        "rule5_cam_sum": lambda: cams.sum((-2, -1)),
        "rule5_cam_mid": lambda: cams[len(cams) // 2],
        "R_cls_after_layer": lambda: after[:, 0],
    }
    compare_all(case, whole | rows)


def compare_lrp(case, net: ViT, image: Tensor, prefix: str, rules: str) -> None:
    """All maps by one table of rules, from one forward pass."""
    full = FullLRP(rules=rules)
    with full.recorded(net) as recording:
        logits = net(image)["logits"]
        targets = class_targets(logits, case.config["class_idx"])
    case.compare("logits_lrp_model", logits)
    relevances = reduced_relevances(recording, targets, lambda record, relevance: relevance)
    relevances = torch.cat(list(relevances.values()))

    def by(method: Method) -> Callable[[], Tensor]:
        return lambda: patches(method(recording, targets))

    found = {
        "attn_cam": lambda: relevances,
        "attn_cam_cls": lambda: relevances[:, :, 0],
        "attn_cam_sum": lambda: relevances.sum((-2, -1)),
        "full": lambda: full.pixels(recording, targets)[0],
        "last_layer_attn": by(RawAttention()),
    }
    for start in (0, 1):
        found[f"transformer_attribution_start{start}"] = by(TransformerAttribution(rules, start))
        found[f"rollout_start{start}"] = by(TransformerAttribution(rules, start, gradient=False))
    for name, layer in {"last_layer": -1, "second_layer": 1}.items():
        found[name] = by(PartialLRP(rules, layer))
        found[f"{name}_ablation"] = by(PartialLRP(rules, layer, gradient=True))
    for name, value in found.items():
        names = [known for known in (f"{prefix}_{name}", f"f64_{prefix}_{name}") if known in case.outputs]
        ours = value() if names else None
        for known in names:
            case.compare(known, ours)


def image_maps(case, method: str, image: Tensor) -> Tensor:
    """Relevance of each pixel (1, h, w) for the predicted class, by a method of the reference's segmentation test."""
    methods: dict[str, Method] = {
        "rollout": Rollout(start_layer=1),
        "attn_gradcam": AttentionGradCAM(mean_over="row"),
        "attn_last_layer": RawAttention(),
        "transformer_attribution": TransformerAttribution(start_layer=1),
        "lrp_last_layer": PartialLRP(),
        "full_lrp": FullLRP(),
    }
    chosen = methods[method]
    by_lrp = "lrp" in method or method == "transformer_attribution"
    net = build_for_lrp(case) if by_lrp else build(case)
    image = image.double() if by_lrp else image
    with chosen.recorded(net) as recording:
        outputs = net(image)
        targets = class_targets(outputs["logits"])
    if method == "full_lrp":
        return chosen.pixels(recording, targets)
    grid = chosen(recording, targets)["image"][:, 1:].unflatten(1, outputs["grid"])
    return F.interpolate(grid[:, None], image.shape[-2:], mode="bilinear")[:, 0]
