"""COCO's average precision of detected boxes, the same on one process and on many."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
AREAS = ("small", "medium", "large")
DETECTION = {"boxes": torch.float32, "scores": torch.float32, "labels": torch.int64}
GROUND_TRUTH = {"boxes": torch.float64, "labels": torch.int64, "area": torch.float64, "iscrowd": torch.int64}

Boxes = Mapping[str, Tensor]


class DetectionAP:
    """The 12 numbers of COCO's box evaluation over all images that were given to `update`.

    backend: "pycocotools" (the original) or "faster_coco_eval" (the same numbers, about 5 times sooner).
    iou_thresholds: default 0.50, 0.55 .. 0.95; "AP" averages over whatever is given, AP50 and AP75 are -1 unless 0.5
    and 0.75 are hit exactly. max_detections: how many of an image's best detections of a class count; recall is
    reported at each.
    A number is -1 where no ground truth defines it. Each image counts once, however many processes saw it.
    Source: COCO detection evaluation (Lin et al. 2014), by torchmetrics' MeanAveragePrecision.
    """

    def __init__(
        self,
        backend: Literal["pycocotools", "faster_coco_eval"] = "pycocotools",
        iou_thresholds: Sequence[float] | None = None,
        max_detections: Sequence[int] = (1, 10, 100),
    ):
        if backend not in ("pycocotools", "faster_coco_eval"):
            raise ValueError(f"backend={backend!r} is unknown: it must be 'pycocotools' or 'faster_coco_eval'")
        given = np.linspace(0.5, 0.95, 10) if iou_thresholds is None else np.asarray(iou_thresholds, dtype=np.float64)
        if len(given) == 0 or (given <= 0).any() or (given > 1).any():
            raise ValueError(f"iou_thresholds={given.tolist()} must be one or more numbers above 0 and up to 1")
        if len(max_detections) != 3 or list(max_detections) != sorted(set(max_detections)) or max_detections[0] < 1:
            raise ValueError(f"max_detections={list(max_detections)} must be three rising counts, like (1, 10, 100)")
        self.backend = backend
        self.iou_thresholds = given.tolist()
        self.max_detections = tuple(max_detections)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._images: dict[int, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}

    def __contains__(self, image_id: int) -> bool:
        """Whether this process has an image already."""
        return image_id in self._images

    def update(self, image_ids: Sequence[int], detections: Sequence[Boxes], ground_truths: Sequence[Boxes]) -> None:
        """Add images; an id that is already there is ignored.

        detections: boxes (N, 4) xyxy in pixels, scores, labels (N,). ground_truths: boxes (G, 4) xyxy in pixels,
        labels, area (pixels), iscrowd (G,); crowds included. ValueError: lengths disagree or a detection is not finite.
        """
        for image_id, detection, truth in zip(image_ids, detections, ground_truths, strict=True):
            packed = _pack(detection, DETECTION, f"detections of image {int(image_id)}")
            if not (np.isfinite(packed["boxes"]).all() and np.isfinite(packed["scores"]).all()):
                raise ValueError(f"detections of image {int(image_id)} have NaN or infinite boxes or scores")
            truth = _pack(truth, GROUND_TRUTH, f"ground truth of image {int(image_id)}")
            self._images.setdefault(int(image_id), (packed, truth))

    def compute(self, curves: bool = False) -> dict[str, Any]:
        """The 12 numbers as floats; a collective call where processes are many, and the same on each.

        curves: also `precision` (T, R, K, A, M), `recall` (T, K, A, M) over IoU thresholds, 101 recall points, classes,
        areas (all, small, medium, large) and max_detections, `scores` like precision, and `classes` (K,).
        """
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if processes == 1:
            return self._evaluate([self._images], curves)
        first = dist.get_rank() == 0
        gathered: list | None = [None] * processes if first else None
        dist.gather_object(self._images, gathered)
        answer: list[Any] = [None, None]
        if first:
            try:
                answer[0] = self._evaluate(gathered, curves)
            except Exception as error:  # the others wait for an answer: let them fail with the same words
                answer[1] = f"{type(error).__name__}: {error}"
        dist.broadcast_object_list(answer)
        if answer[1] is not None:
            raise RuntimeError(f"the evaluation of all processes' detections failed: {answer[1]}")
        return answer[0]

    def _evaluate(self, parts: Sequence[Mapping], curves: bool) -> dict[str, Any]:
        images: dict[int, tuple] = {}
        for part in parts:
            for image_id, image in part.items():
                images.setdefault(image_id, image)
        if not images:
            return dict.fromkeys(AP_NAMES, -1.0)
        from torchmetrics.detection import MeanAveragePrecision

        # the backends' own 12 numbers are right for 100 detections only; the curves cost torchmetrics much time
        curves_needed = curves or self.max_detections[-1] != 100
        metric = MeanAveragePrecision(
            backend=self.backend,
            iou_thresholds=self.iou_thresholds,
            rec_thresholds=np.linspace(0, 1, 101).tolist(),
            max_detection_thresholds=list(self.max_detections),
            extended_summary=curves_needed,
            sync_on_compute=False,
        )
        metric.warn_on_many_detections = False
        ordered = [images[image_id] for image_id in sorted(images)]
        metric.update([_tensors(detections) for detections, _ in ordered], [_tensors(truth) for _, truth in ordered])
        result = metric.compute()
        if not curves_needed:
            recalls = [f"mar_{count}" for count in self.max_detections]
            keys = ["map", "map_50", "map_75", *(f"map_{area}" for area in AREAS), *recalls]
            keys += [f"mar_{area}" for area in AREAS]
            return {name: float(result[key]) for name, key in zip(AP_NAMES, keys, strict=True)}
        precision, recall = result["precision"].numpy(), result["recall"].numpy()
        numbers: dict[str, Any] = summarise(precision, recall, self.iou_thresholds)
        if curves:
            numbers |= {"precision": precision, "recall": recall, "scores": result["scores"].numpy()}
            numbers["classes"] = result["classes"].reshape(-1).numpy()
        return numbers


def summarise(precision: np.ndarray, recall: np.ndarray, iou_thresholds: Sequence[float]) -> dict[str, float]:
    """The 12 numbers from `precision` (T, R, K, A, M) and `recall` (T, K, A, M); entries of -1 are not defined.

    AP and the numbers by area take the largest count of detections, AR1, AR10, AR100 the three counts in turn.
    """
    thresholds = np.asarray(iou_thresholds)
    return {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[thresholds == 0.5, :, :, 0, -1]),
        "AP75": _mean(precision[thresholds == 0.75, :, :, 0, -1]),
        **{name: _mean(precision[:, :, :, area, -1]) for area, name in enumerate(AP_NAMES[3:6], 1)},
        **{name: _mean(recall[:, :, 0, count]) for count, name in enumerate(AP_NAMES[6:9])},
        **{name: _mean(recall[:, :, area, -1]) for area, name in enumerate(AP_NAMES[9:], 1)},
    }


def ap_table(numbers: Mapping[str, float]) -> str:
    """The 12 numbers as two lines of text to print, precision above recall, in percent; '-' where not defined."""
    rows = []
    for names in (AP_NAMES[:6], AP_NAMES[6:]):
        cells = [f"{100 * numbers[name]:.1f}" if numbers[name] >= 0 else "-" for name in names]
        rows.append("  ".join(f"{name:>5} {cell:>5}" for name, cell in zip(names, cells, strict=True)))
    return "\n".join(rows)


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _pack(boxes: Boxes, entries: Mapping[str, torch.dtype], what: str) -> dict[str, np.ndarray]:
    missing = [name for name in entries if name not in boxes]
    if missing:
        raise ValueError(f"{what} lacks {', '.join(missing)}: it needs {', '.join(entries)}")
    packed = {name: boxes[name].detach().to("cpu", dtype).numpy() for name, dtype in entries.items()}
    if len({len(array) for array in packed.values()}) > 1 or packed["boxes"].shape[1:] != (4,):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in packed.items())
        raise ValueError(f"{what} must have boxes (N, 4) and all entries of one length, but has {shapes}")
    return packed


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
