"""COCO's box evaluation: the 12 numbers, the curves behind them, and other IoU thresholds."""

import numpy as np
import torch

from checks import check
from lightning_xai.evaluate.detection_ap import AP_NAMES, DetectionAP


@check("deformable_detr/coco_eval")
def coco_eval(case):
    for backend in ("pycocotools", "faster_coco_eval"):
        if backend == "faster_coco_eval":
            try:
                import faster_coco_eval  # noqa: F401
            except ImportError:
                continue
        compare_backend(case, backend)


def compare_backend(case, backend: str) -> None:
    standard = evaluate(case, backend, None)
    case.compare("stats", numbers(standard))
    case.compare("ap_per_threshold", ap_per_threshold(standard))
    # classes that neither the ground truth nor a detection has are not defined
    categories, seen = case.inputs["category_ids"].tolist(), standard["classes"].tolist()
    for name, axis in (("precision", 2), ("recall", 1)):
        curves = torch.from_numpy(standard[name])
        shape = list(curves.shape)
        shape[axis] = len(categories)
        everything = torch.full(shape, -1.0, dtype=curves.dtype)
        everything.index_copy_(axis, torch.tensor([categories.index(c) for c in seen]), curves)
        case.compare(name, everything)

    rounded = [round(float(threshold), 2) for threshold in case.inputs["iou_thrs_16"]]
    low, high, count = min(rounded), max(rounded), len(rounded)
    thresholds = {
        "thr_16": rounded,
        "thr_16_linspace": np.linspace(low, high, count),
        "thr_16_arange": np.arange(low, 1.0, 0.05),
        "thr_3": [0.2, 0.5, 0.75],
        "thr_1": [0.2],
    }
    for name, chosen in thresholds.items():
        if f"stats_{name}" in case.outputs:
            found = evaluate(case, backend, chosen)
            case.compare(f"stats_{name}", numbers(found))
            if name == "thr_16":
                case.compare("ap_per_threshold_16", ap_per_threshold(found))


def evaluate(case, backend: str, iou_thresholds) -> dict:
    given = case.inputs
    detections, truths = [], []
    for image in given["image_id"]:
        own = given["det_image_id"] == image
        detections.append({name: given[f"det_{name}"][own] for name in ("boxes", "scores")})
        detections[-1]["labels"] = given["det_label"][own]
        own = given["ann_image_id"] == image
        corner, size = given["ann_bbox"][own].double().split(2, -1)
        truths.append(
            {
                "boxes": torch.cat([corner, corner + size], -1),
                "labels": given["ann_category_id"][own],
                "area": given["ann_area"][own],
                "iscrowd": given["ann_iscrowd"][own],
            }
        )
    ap = DetectionAP(backend, iou_thresholds, case.config["max_dets"])
    ap.update(given["image_id"].tolist(), detections, truths)
    return ap.compute(curves=True)


def numbers(found: dict) -> torch.Tensor:
    return torch.tensor([found[name] for name in AP_NAMES])


def ap_per_threshold(found: dict) -> torch.Tensor:
    precision = found["precision"][:, :, :, 0, -1]
    return torch.tensor([row[row > -1].mean() for row in precision])
