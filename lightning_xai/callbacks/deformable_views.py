"""Views of deformable attention during validation: the same objects of the same images every time."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lightning_xai.callbacks.attention_views import QUERY_VIEWS, RecordedImage, Selection
from lightning_xai.callbacks.pictures import log_picture
from lightning_xai.callbacks.undisturbed import require_whole_network, undisturbed
from lightning_xai.draw.boxes import draw_boxes
from lightning_xai.draw.palette import name_of
from lightning_xai.explain.intervention import extents
from lightning_xai.explain.recording import record
from lightning_xai.explain.sampling_points import ImageFrame, cell_of

VIEWS = ("detections", "queries", *QUERY_VIEWS)


@dataclass
class WatchedImage:
    """A validation image as it lay in its batch, and the objects (N, 4) xyxy whose detections are followed."""

    images: Tensor
    mask: Tensor
    target: dict[str, Any]
    objects: Tensor | None = None
    labels: Tensor | None = None


class DeformableAttentionViews(pl.Callback):
    """Draw what a detector looks at, in the validation of every n-th epoch and the last, for all loggers and as files.

    Shown are the `samples` images with the smallest ids that the first process validates on, and in each the same
    `detections` objects: the largest annotated (of an image without any, the best detections of the first time). An
    object's detection is the query with the largest product of IoU and score of its class. views: some of "detections"
    (boxes beside the truth), "queries" (the decoder's module view) and, for each object, "module", "layers", "grid",
    "points" and "heat". part, layers, heads, levels: which attention; of the encoder, that of the cell at the object's
    centre, of the first level chosen. score_threshold: which boxes "detections" shows.

    A part, layer, head or level that the network does not have raises ValueError before the first step; "queries" is
    left out, with one warning, of a network that does not give the predictions of every decoder layer.

    The module must have `net`, `prepare(batch)`, `detections(outputs, sizes)` and `class_names`. It is run once more
    for each image, without gradients, in eval mode, on the first process alone.
    """

    def __init__(
        self,
        samples: int = 2,
        detections: int = 2,
        part: str = "decoder",
        layers: list[int] | None = None,
        heads: list[int] | None = None,
        levels: list[int] | None = None,
        views: Sequence[str] = ("detections", "queries", "layers", "grid", "heat"),
        every_n_epochs: int = 1,
        score_threshold: float = 0.3,
    ):
        unknown = sorted(set(views) - set(VIEWS))
        if unknown:
            raise ValueError(f"there is no view {unknown[0]!r}; choose from {', '.join(VIEWS)}")
        if min(samples, detections, every_n_epochs) < 1:
            given = f"samples={samples}, detections={detections}, every_n_epochs={every_n_epochs}"
            raise ValueError(f"{given}: each is at least 1; leave the callback out to draw nothing")
        self.samples, self.detections = samples, detections
        self.selection = Selection(part, layers, heads, levels)
        self.views = tuple(views)
        self.every_n_epochs = every_n_epochs
        self.score_threshold = score_threshold
        self.watched: dict[int, WatchedImage] = {}
        self._complete = False  # the images were chosen by a whole validation and stay
        self._warned = False  # of missing predictions of the decoder's layers

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require_whole_network(trainer, self)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.selection.check(extents(pl_module.net))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.selection.check(extents(pl_module.net))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if self._complete or trainer.sanity_checking or not trainer.is_global_zero:
            return
        for i, target in enumerate(batch["targets"]):
            identity = int(target["image_id"])
            if len(self.watched) >= self.samples and identity >= max(self.watched):
                continue
            kept = {key: value.cpu() for key, value in target.items() if isinstance(value, Tensor)}
            rows = (batch[name][i : i + 1].cpu().clone() for name in ("images", "mask"))
            self.watched[identity] = WatchedImage(*rows, kept)
            if len(self.watched) > self.samples:
                del self.watched[max(self.watched)]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or not self.watched:
            return
        self._complete = True
        epoch = trainer.current_epoch + 1
        if trainer.state.fn == "fit" and epoch % self.every_n_epochs and epoch != trainer.max_epochs:
            return
        for identity in sorted(self.watched):
            for name, picture in self._draw(trainer, pl_module, identity, self.watched[identity]):
                log_picture(trainer, f"attention/image_{identity}/{name}", picture, trainer.global_step)

    def _draw(self, trainer, pl_module, identity: int, watched: WatchedImage) -> Iterator[tuple[str, np.ndarray]]:
        shown, found = self._observe(trainer, pl_module, watched)
        self._choose_objects(watched, found)
        scores = shown.outputs["pred_logits"][0].float().sigmoid().cpu()
        boxes = shown.frame.boxes_from_image(shown.outputs["pred_boxes"][0].float().cpu())
        labels = watched.labels.tolist()
        queries = [best_query(boxes, scores[:, k], box) for k, box in zip(labels, watched.objects, strict=True)]

        title = f"image {identity}, epoch {trainer.current_epoch}"
        names = pl_module.class_names or []
        if "detections" in self.views:
            yield "detections", self._draw_detections(shown.picture, found, watched, names, title)
        if "queries" in self.views and not shown.has_evolution():
            if not self._warned:
                warnings.warn(
                    'the view "queries" is left out: it needs the predictions of every decoder layer, which a network '
                    "with aux_loss=False does not give",
                    stacklevel=2,
                )
            self._warned = True
        elif "queries" in self.views:
            best = scores.max(-1).values.topk(min(12, len(scores))).indices.tolist()
            yield (
                "queries",
                shown.evolution(names, sorted({*queries, *best}), f"{title}: object queries in the decoder"),
            )
        wanted = [view for view in self.views if view in QUERY_VIEWS]
        for number, (query, label) in enumerate(zip(queries, labels, strict=True)):
            if self.selection.part == "decoder":
                token, what = query, f"query {query}, {name_of(label, names)} {scores[query, label]:.2f}"
            else:
                level = self.selection.levels[0] if self.selection.levels else 0
                token = self._token_at_centre(shown, watched.objects[number], level)
                what = f"encoder cell of level {level} at the centre of a {name_of(label, names)}"
            for view, drawn in shown.query_views(token, f"{title}: {what}", self.selection, wanted).items():
                yield f"object_{number}/{self.selection.part}_{view}", drawn

    def _observe(self, trainer, pl_module, watched: WatchedImage) -> tuple[RecordedImage, dict[str, Tensor]]:
        """Run the detector on one image: what it did, and its detections in pixels of the image."""
        device = pl_module.device
        batch = {"images": watched.images.to(device), "mask": watched.mask.to(device), "targets": [watched.target]}
        h, w = (int(side) for side in watched.target["size"])
        with undisturbed(trainer, pl_module):
            images, mask = pl_module.prepare(batch)
            # Through the module's own forward, so that its interventions act inside the recording and are seen in it.
            with record(pl_module.net) as recording:
                outputs = pl_module(images, mask)
            found = pl_module.detections(outputs, torch.tensor([[h, w]], device=device))[0]
        found = {key: value.cpu().float() if value.is_floating_point() else value.cpu() for key, value in found.items()}
        picture = watched.images[0, :, :h, :w].permute(1, 2, 0).numpy()
        frame = ImageFrame(tuple(watched.mask.shape[1:]), (h, w), (h, w))
        return RecordedImage(picture, recording, outputs, frame), found

    def _draw_detections(
        self, picture, found: dict[str, Tensor], watched: WatchedImage, names, title: str
    ) -> np.ndarray:
        sure = found["scores"] >= self.score_threshold
        boxes, labels, scores = (found[key][sure].numpy() for key in ("boxes", "labels", "scores"))
        truth = watched.target["boxes"].numpy() if "boxes" in watched.target else None
        caption = f"{title}: detections of score {self.score_threshold:g} and above"
        return draw_boxes(picture, boxes, labels, names, scores, truth, caption)

    @staticmethod
    def _token_at_centre(shown: RecordedImage, box: Tensor, level: int) -> int:
        centre = shown.frame.to_padded(((box[:2] + box[2:]) / 2).clamp(min=0))
        return cell_of(shown.recording.at("encoder", 0).shapes, level, tuple(centre.tolist()))

    def _choose_objects(self, watched: WatchedImage, found: dict[str, Tensor]) -> None:
        """Fix the objects to follow, once and for all."""
        if watched.objects is not None:
            return
        boxes, labels = watched.target.get("boxes"), watched.target.get("labels")
        if boxes is None or len(boxes) == 0:
            boxes, labels = found["boxes"], found["labels"]  # best first
        else:
            largest = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argsort(descending=True, stable=True)
            boxes, labels = boxes[largest], labels[largest]
        watched.objects, watched.labels = boxes[: self.detections].clone(), labels[: self.detections].clone()


def best_query(boxes: Tensor, scores: Tensor, wanted: Tensor) -> int:
    """The query that detects an object best: boxes (Q, 4) xyxy, scores (Q,) of its class, wanted (4,) its box.

    The largest product of IoU and score; while no query overlaps it, the one of the highest score.
    """
    overlap = box_iou(boxes, wanted[None])[:, 0]
    return int(((overlap + 1e-6) * scores).argmax())
