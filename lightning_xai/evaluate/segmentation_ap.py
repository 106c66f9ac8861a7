"""COCO's average precision of masks, the same on one process and on many."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_xai.evaluate.detection_ap import AP_NAMES, DetectionAP, summarise

EXPLANATION_THRESHOLDS = np.linspace(0.2, 0.95, 16)  # of masks made of relevance (Chefer et al. 2021), in steps of 0.05
AREAS = [("all", 0.0, 1e10), ("small", 0.0, 32.0**2), ("medium", 32.0**2, 96.0**2), ("large", 96.0**2, 1e10)]
DETECTION = {"scores": torch.float64, "labels": torch.int64}
GROUND_TRUTH = {"labels": torch.int64, "area": torch.float64, "iscrowd": torch.int64}


class SegmentationAP(DetectionAP):
    """The 12 numbers of COCO's mask evaluation over all images that were given to `update`.

    iou_thresholds, max_detections, backend, and what -1 means: see `DetectionAP`. Masks are kept as run lengths. A
    detection with an empty mask counts as a false alarm, where detections of area 0 count at all.
    Source: COCO evaluation of segmentations (Lin et al. 2014), by the evaluator itself.
    """

    def __init__(
        self,
        backend: Literal["pycocotools", "faster_coco_eval"] = "pycocotools",
        iou_thresholds: Sequence[float] | None = None,
        max_detections: Sequence[int] = (1, 10, 100),
    ):
        super().__init__(backend, iou_thresholds, max_detections)

    def update(
        self,
        image_ids: Sequence[int],
        detections: Sequence[Mapping[str, Tensor]],
        ground_truths: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Add images; an id that is already there is ignored.

        detections: masks (N, h, w) bool at the image's own size, scores, labels (N,). ground_truths: masks (G, h, w),
        labels, area (pixels), iscrowd (G,); crowds included. ValueError: lengths disagree, masks of an image have
        different sizes, or a score is not finite.
        """
        for image_id, detection, truth in zip(image_ids, detections, ground_truths, strict=True):
            found = _pack(detection, DETECTION, f"detections of image {int(image_id)}")
            if not np.isfinite(found["scores"]).all():
                raise ValueError(f"detections of image {int(image_id)} have NaN or infinite scores")
            true = _pack(truth, GROUND_TRUTH, f"ground truth of image {int(image_id)}")
            if found["size"] != true["size"]:
                raise ValueError(
                    f"masks detected in image {int(image_id)} are of size {found['size']}, the true ones of "
                    f"{true['size']}: both must have the size of the image"
                )
            self._images.setdefault(int(image_id), (found, true))

    def _evaluate(self, parts: Sequence[Mapping], curves: bool) -> dict[str, Any]:
        images: dict[int, tuple] = {}
        for part in parts:
            for image_id, image in part.items():
                images.setdefault(image_id, image)
        if not images:
            return dict.fromkeys(AP_NAMES, -1.0)
        if self.backend == "faster_coco_eval":
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as COCOeval
        else:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):  # they print as they go
            found, true = (_coco(COCO, images, side) for side in (0, 1))
            evaluation = COCOeval(true, found, "segm")
            evaluation.params.iouThrs = np.asarray(self.iou_thresholds)
            evaluation.params.recThrs = np.linspace(0, 1, 101)
            evaluation.params.maxDets = list(self.max_detections)
            evaluation.params.areaRngLbl = [name for name, _, _ in AREAS]
            evaluation.params.areaRng = [[low, high] for _, low, high in AREAS]
            evaluation.evaluate()
            evaluation.accumulate()
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        numbers: dict[str, Any] = summarise(precision, recall, self.iou_thresholds)
        if curves:
            numbers |= {"precision": precision, "recall": recall, "scores": evaluation.eval["scores"]}
            numbers["classes"] = np.asarray(evaluation.params.catIds)
        return numbers


def _pack(masks: Mapping[str, Tensor], entries: Mapping[str, torch.dtype], what: str) -> dict[str, Any]:
    from pycocotools import mask as run_lengths

    missing = [name for name in ("masks", *entries) if name not in masks]
    if missing:
        raise ValueError(f"{what} lacks {', '.join(missing)}: it needs masks, {', '.join(entries)}")
    packed: dict[str, Any] = {name: masks[name].detach().to("cpu", dtype).numpy() for name, dtype in entries.items()}
    binary = masks["masks"].detach().cpu()
    if binary.dim() != 3 or {len(array) for array in packed.values()} != {len(binary)}:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in packed.items())
        raise ValueError(
            f"{what} must have masks (N, h, w) and all entries of one length, but has masks {tuple(binary.shape)}, "
            f"{shapes}"
        )
    # most queries of a detector may have empty masks, which are one run each
    height, width = binary.shape[1:]
    filled = binary.flatten(1).any(1)
    pixels = np.asfortranarray(binary[filled].to(torch.uint8).permute(1, 2, 0).numpy())
    codes = iter(run_lengths.encode(pixels) if filled.any() else [])
    empty = run_lengths.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
    return packed | {"masks": [next(codes) if f else empty for f in filled.tolist()], "size": (height, width)}


def _coco(container: type, images: Mapping[int, tuple], side: int) -> Any:
    """The evaluator's data set of all images' detections (side 0) or ground truths (side 1)."""
    from pycocotools import mask as run_lengths

    annotations, labels = [], set()
    for image_id in sorted(images):
        entries = images[image_id][side]
        labels |= {int(label) for pack in images[image_id] for label in pack["labels"]}
        for i, mask in enumerate(entries["masks"]):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": int(entries["labels"][i]),
                "segmentation": mask,
                "bbox": run_lengths.toBbox(mask).tolist(),
                "area": float(entries["area"][i]) if side else float(run_lengths.area(mask)),
                "iscrowd": int(entries["iscrowd"][i]) if side else 0,
            }
            annotations.append(annotation if side else annotation | {"score": float(entries["scores"][i])})
    data = container()
    data.dataset = {
        "info": {},
        "images": [
            {"id": image_id, "height": pack["size"][0], "width": pack["size"][1]}
            for image_id, (pack, _) in sorted(images.items())
        ],
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in sorted(labels)],
    }
    data.createIndex()
    return data
