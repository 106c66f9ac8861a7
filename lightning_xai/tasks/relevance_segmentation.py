"""From explanation to segmentation: COCO's mask AP of the masks that relevance makes of a detector's kept queries."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_xai.evaluate.measure import Batch, Classify, Measure, Numbers
from lightning_xai.evaluate.relevance_masks import FOREGROUND, otsu_masks
from lightning_xai.evaluate.segmentation_ap import EXPLANATION_THRESHOLDS, SegmentationAP
from lightning_xai.explain.explainable import Explained
from lightning_xai.explain.explanation import Explanation
from lightning_xai.tasks.detection import DetectionTask
from lightning_xai.tasks.detection_postprocess import masks_in_images


class RelevanceSegmentation(Measure):
    """Relevance of each kept query -> Otsu's threshold -> mask -> average precision and recall of masks.

    A query keeps the detector's label and score; queries that the detector does not keep are submitted with empty
    masks. The map's own cells are thresholded, enlarged bilinearly to the network input, where every pixel with any
    weight of a foreground cell is foreground, and resized to the original image by nearest pixel. Padding takes no
    part: an image has the same mask in every batch. iou_thresholds: default 0.2, 0.25 .. 0.95; COCO's own are 0.5,
    0.55 .. 0.95. limit: explain at most so many queries an image, the best ones. backend: see `SegmentationAP`.
    ValueError: the data has no masks. Source: Chefer et al. 2021 (arXiv 2103.15679, section 5 and the DETR folder of
    their repository).
    """

    choice = "kept"

    def __init__(
        self,
        iou_thresholds: list[float] | None = None,
        limit: int | None = None,
        backend: Literal["pycocotools", "faster_coco_eval"] = "pycocotools",
    ):
        self.limit = limit
        self.backend = backend
        self.iou_thresholds = EXPLANATION_THRESHOLDS if iou_thresholds is None else iou_thresholds
        self.begin([])

    def begin(self, methods: Sequence[str]) -> None:
        self._ap = {method: SegmentationAP(self.backend, self.iou_thresholds) for method in methods}
        self._batch: Batch = {"targets": []}
        self._found: list[dict[str, Tensor]] = []

    def see(self, task: DetectionTask, outputs: Mapping[str, Any], batch: Batch) -> None:
        for target in batch["targets"]:
            if "masks" not in target.get("ground_truth", {}):
                raise ValueError(
                    f"image {int(target['image_id'])} has no true masks to compare with: set masks=true of the data"
                )
        self._complete()
        scores, labels = task.class_probabilities(outputs).max(-1)
        self._batch = batch
        self._found = [{"scores": s, "labels": c} for s, c in zip(scores.cpu(), labels.cpu(), strict=True)]
        self._valid_ratios = outputs["valid_ratios"][:, 0].float().cpu()

    def update(
        self, method: str, explanation: Explanation, explained: Explained, batch: Batch, classify: Classify
    ) -> None:
        maps, queries = explanation.grid().float().cpu(), explained.targets.rows["query"].cpu()
        samples = explanation.samples.cpu()
        for i, target in enumerate(batch["targets"]):
            own = samples == i
            if own.any():
                masks = otsu_masks(without_padding(maps[own], self._valid_ratios[i]))
                self._add(method, i, in_original_image(masks, target["size"], target["orig_size"]), queries[own])

    def compute(self) -> dict[str, Numbers]:
        self._complete()
        table = {method: ap.compute() for method, ap in self._ap.items()}
        return {
            method: {name: number if number >= 0 else math.nan for name, number in numbers.items()}
            for method, numbers in table.items()
        }

    def _add(self, method: str, sample: int, masks: Tensor, queries: Tensor) -> None:
        target, found = self._batch["targets"][sample], self._found[sample]
        all_masks = torch.zeros(len(found["scores"]), *target["orig_size"].tolist(), dtype=torch.bool)
        all_masks[queries] = masks
        self._ap[method].update([int(target["image_id"])], [{**found, "masks": all_masks}], [target["ground_truth"]])

    def _complete(self) -> None:
        """Images of the last batch of which nothing was explained count too: their queries have empty masks."""
        for i, target in enumerate(self._batch["targets"]):
            for method, ap in self._ap.items():
                if int(target["image_id"]) not in ap:
                    nothing = torch.zeros(0, *target["orig_size"].tolist(), dtype=torch.bool)
                    self._add(method, i, nothing, torch.zeros(0, dtype=torch.int64))


def without_padding(maps: Tensor, valid_ratios: Tensor) -> Tensor:
    """The cells of maps (t, h, w) that are image; valid_ratios (2,): the image's share of columns and of rows."""
    columns, rows = (valid_ratios * torch.tensor([maps.shape[2], maps.shape[1]])).round().long().tolist()
    return maps[:, :rows, :columns]


def in_original_image(masks: Tensor, size: Tensor, orig_size: Tensor) -> Tensor:
    """Masks (t, h, w) bool of an image's cells as masks (t, H, W) bool of the original image of orig_size (2,) (h, w).

    size: (2,) (h, w) of the image as the network saw it, without padding. A mask grows by half a cell on each side.
    """
    return masks_in_images(FOREGROUND * masks[None].float(), size[None], orig_size[None])[0][:, 0]
