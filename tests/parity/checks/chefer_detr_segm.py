"""DETR's relevance as segmentation: masks of kept queries, their losses, and COCO's evaluation of boxes and masks."""

import torch
from pycocotools import mask as run_lengths
from torch import Tensor

from checks import check
from checks.chefer_detr import LRP_METHODS, METHODS, RULES, build, forgive_cells, set_tolerances
from lightning_xai.evaluate.detection_ap import AP_NAMES, DetectionAP
from lightning_xai.evaluate.relevance_masks import kept_queries, otsu_masks, query_masks
from lightning_xai.evaluate.segmentation_ap import EXPLANATION_THRESHOLDS, SegmentationAP
from lightning_xai.explain.recording import Recording, record
from lightning_xai.explain.site_relevance import ruled_recording
from lightning_xai.explain.targets import Targets, detection_targets
from lightning_xai.tasks.detection_postprocess import masks_in_images
from lightning_xai.tasks.detr_losses import SoftmaxSetCriterion
from lightning_xai.tasks.detr_postprocess import query_detections
from lightning_xai.tasks.loss_means import named_means


@check("chefer/detr_segm_eval")
def detr_segm_eval(case):
    set_tolerances(case)
    net, config = build(case), case.config
    images = torch.stack([case.inputs[f"image{i}"] for i in range(len(config["kept_queries_per_image"]))])
    mask = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    with record(net, gradients=True) as recording:
        outputs = net(images, mask)
        samples, queries, labels = kept_queries(outputs["pred_logits"])
        targets = detection_targets(outputs["pred_logits"], samples, queries, labels)
    for i, expected in enumerate(config["kept_queries_per_image"]):
        if queries[samples == i].tolist() != expected:
            case.failures.append(f"image {i}: kept queries {queries[samples == i].tolist()}, expected {expected}")

    originals = torch.tensor([config["orig_size"]] * len(images))
    found = query_detections(outputs["pred_logits"], outputs["pred_boxes"], originals)
    found = {name: found[name].detach() for name in ("scores", "labels", "boxes")}
    for i in range(len(images)):
        for name, values in found.items():
            case.compare(f"{name}{i}", values[i])
    truths = ground_truths(case, len(images))
    compare_box_evaluation(case, found, truths)

    shape = tuple(outputs["spatial_shapes"][0].tolist())
    masks = masks_of(METHODS, recording, targets, shape)
    with ruled_recording(net.double(), RULES) as ruled:
        logits = net(images.double(), mask)["pred_logits"]
        targets = detection_targets(logits, samples, queries, labels)
    masks |= masks_of(LRP_METHODS, ruled, targets, shape)
    for name, kept in masks.items():
        kept = forgive_cells(case, name, kept, case.outputs[f"pred_masks_{name}"] > 0)
        kept = query_masks(kept, samples, queries, tuple(logits.shape[:2]))
        compare_mask_evaluation(case, name, kept, (samples, queries), found, truths, originals)
        compare_losses(case, name, outputs, kept)


def masks_of(methods: dict, recording: Recording, targets: Targets, shape: tuple[int, int]) -> dict[str, Tensor]:
    maps = {name: method(recording, targets)["image"].unflatten(1, shape) for name, method in methods.items()}
    return {name: otsu_masks(each) for name, each in maps.items()}


def ground_truths(case, count: int) -> list[dict[str, Tensor]]:
    truths = []
    for image in range(1, count + 1):
        own = [a for a in case.config["gt_annotations"] if a["image_id"] == image]
        box = torch.tensor([a["bbox"] for a in own], dtype=torch.float64).reshape(-1, 4)
        masks = [torch.from_numpy(run_lengths.decode(a["segmentation"])) for a in own]
        truths.append(
            {
                "boxes": torch.cat([box[:, :2], box[:, :2] + box[:, 2:]], 1),
                "masks": torch.stack(masks).bool() if own else torch.zeros(0, *case.config["orig_size"]).bool(),
                "labels": torch.tensor([a["category_id"] for a in own], dtype=torch.int64),
                "area": torch.tensor([a["area"] for a in own], dtype=torch.float64),
                "iscrowd": torch.tensor([a["iscrowd"] for a in own], dtype=torch.int64),
            }
        )
    return truths


def compare_box_evaluation(case, found: dict[str, Tensor], truths: list[dict]) -> None:
    ap = DetectionAP(iou_thresholds=EXPLANATION_THRESHOLDS)
    detections = [{name: values[i] for name, values in found.items()} for i in range(len(truths))]
    ap.update(range(len(truths)), detections, truths)
    numbers = ap.compute()
    case.compare("coco_bbox", torch.tensor([numbers[name] for name in AP_NAMES]))


def compare_mask_evaluation(
    case, method: str, masks: Tensor, kept: tuple[Tensor, Tensor], found: dict, truths: list[dict], originals: Tensor
) -> None:
    case.compare(f"pred_masks_{method}", masks[kept])
    sizes = torch.tensor([case.config["size"]] * len(truths))
    finals = [final[:, 0] for final in masks_in_images(masks, sizes, originals)]
    detections = [
        {"masks": final, "scores": found["scores"][i], "labels": found["labels"][i]} for i, final in enumerate(finals)
    ]
    ap = SegmentationAP(iou_thresholds=EXPLANATION_THRESHOLDS)
    ap.update(range(len(truths)), detections, truths)
    numbers = ap.compute()
    case.compare(f"coco_segm_{method}", torch.tensor([numbers[name] for name in AP_NAMES]))
    if method == "ours_no_lrp":
        for i, final in enumerate(finals):
            case.compare(f"segm_area{i}", final.sum((1, 2)))
        case.compare("segm_masks0", finals[0][kept[1][kept[0] == 0]])


def compare_losses(case, method: str, outputs: dict, masks: Tensor) -> None:
    """Means over batches of one image each, named as in the reference's log."""
    criterion, rows = SoftmaxSetCriterion(), []
    for i in range(len(masks)):
        own = {name: outputs[name][i : i + 1] for name in ("pred_logits", "pred_boxes")}
        own["aux_outputs"] = [{k: v[i : i + 1] for k, v in layer.items()} for layer in outputs["aux_outputs"]]
        target = {name: case.inputs[f"gt_{name}{i}"] for name in ("boxes", "labels", "masks")}
        losses = criterion(own | {"pred_masks": masks[i : i + 1]}, [target])
        means = named_means(losses.names, losses.weights.tolist(), losses.values.tolist())
        rows.append([means[name] for name in case.config["loss_names"]])
    case.compare(f"loss_{method}", torch.tensor(rows).mean(0))
