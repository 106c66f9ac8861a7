"""Which of a detector's queries are explained, and what is said about them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from lightning_xai.explain.explainable import Choice, Explained, Prediction
from lightning_xai.explain.targets import detection_targets

CHOICES = ("predicted", "kept", "truth", "class", "query")
MATCHING_IOU = 0.5


def explained_queries(
    outputs: Mapping[str, Any],
    scores: Tensor,
    batch: Mapping[str, Any],
    choice: str,
    limit: int | None,
    threshold: float,
    class_names: Sequence[str] | None,
) -> Explained:
    """The logits of chosen queries of a batch: T targets, each read at its query.

    choice: "predicted", the queries whose best class has a score above `threshold`, best first; "kept", the same in the
    order of queries; "truth", for each annotated object the query with the best score of its label among those whose
    box has an IoU of at least 0.5 with it; "class:NAME|INDEX", the query that scores a class highest; "query:Q" with
    its best class, or "query:Q:CLASS". limit: at most so many of a sample (default all; of a class one).
    scores: (B, Q, K) probabilities. Raises ValueError for a choice that there is not and for annotations with other
    labels, LookupError where nothing is chosen in the whole batch.
    """
    scores = scores.detach()
    _, queries, classes = scores.shape
    chosen = Choice.parse(choice, CHOICES, classes, class_names, queries)
    boxes = input_boxes(outputs["pred_boxes"], batch["targets"])
    found = [
        _of_sample(chosen, limit, scores[i], boxes[i], target, threshold) for i, target in enumerate(batch["targets"])
    ]
    counts = [len(rows) for rows in found]
    if not sum(counts):
        raise LookupError(
            f"no query of these images is chosen by {choice!r}: {_why_none(chosen, batch, scores, threshold)}"
        )
    query, label, item = torch.cat(found).unbind(1)
    sample = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(query.device)
    return Explained(
        detection_targets(outputs["pred_logits"], sample, query, label),
        tuple(
            f"query {q}: {caption(c, scores[b, q, c], class_names)}"
            for b, q, c in zip(sample.tolist(), query.tolist(), label.tolist(), strict=True)
        ),
        label,
        boxes[sample, query],
        item if chosen.kind == "truth" else None,
    )


def _why_none(choice: Choice, batch: Mapping[str, Any], scores: Tensor, threshold: float) -> str:
    if choice.kind in ("predicted", "kept"):
        return f"the best score is {float(scores.max()):.2f}, the threshold {threshold:g}"
    if choice.kind == "truth" and not any(len(target["boxes"]) for target in batch["targets"]):
        return "they have no annotated objects"
    if choice.kind == "truth":
        return f"none lies on an annotated object with an IoU of at least {MATCHING_IOU}"
    return "a limit of 0 leaves none"


def _of_sample(
    choice: Choice, limit: int | None, scores: Tensor, boxes: Tensor, target: Mapping[str, Tensor], threshold: float
) -> Tensor:
    """(t, 3) query, class and annotated object (-1: none) of one sample with scores (Q, K) and boxes (Q, 4)."""
    best, labels = scores.max(-1)
    objects = None
    if choice.kind in ("predicted", "kept"):
        order = best.argsort(descending=True, stable=True)
        queries = order[best[order] > threshold][:limit]
        if choice.kind == "kept":
            queries = queries.sort().values
        classes = labels[queries]
    elif choice.kind == "truth":
        most = int(target["labels"].max()) if len(target["labels"]) else 0
        if most >= scores.shape[1]:
            raise ValueError(f"an annotated object has the label {most}, but the network has {scores.shape[1]} classes")
        queries, classes, objects = (rows[:limit] for rows in _of_objects(scores, boxes, target))
    elif choice.kind == "class":
        queries = scores[:, choice.class_index].argsort(descending=True, stable=True)[: limit or 1]
        classes = torch.full_like(queries, choice.class_index)
    else:
        queries = labels.new_tensor([choice.query])
        classes = labels[queries] if choice.class_index is None else labels.new_tensor([choice.class_index])
    if objects is None:
        objects = torch.full_like(queries, -1)
    return torch.stack([queries, classes, objects], 1)


def _of_objects(scores: Tensor, boxes: Tensor, target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, labels and objects (t,): the queries that stand for annotated objects; objects without one are left out.

    target: boxes (G, 4) xyxy in pixels of the network input, as `boxes`, and labels (G,).
    """
    labels = target["labels"].to(scores.device)
    near = box_iou(target["boxes"].to(boxes), boxes) >= MATCHING_IOU  # (G, Q)
    score, query = scores.T[labels].masked_fill(~near, -1.0).max(1)
    objects = (score >= 0).nonzero()[:, 0]
    return query[objects], labels[objects], objects


def predicted_boxes(
    outputs: Mapping[str, Any],
    scores: Tensor,
    batch: Mapping[str, Any],
    sample: int,
    threshold: float,
    class_names: Sequence[str] | None,
) -> Prediction:
    """The detections of one sample above `threshold`, best first; the best five in words, or the best one of all."""
    best, labels = scores[sample].detach().max(-1)
    order = best.argsort(descending=True, stable=True)
    kept = order[best[order] > threshold]
    words = tuple(caption(int(labels[q]), best[q], class_names) for q in kept.tolist())
    lines = words[:5]
    if not lines:
        first = int(order[0])
        lines = (f"nothing above {threshold:.2f}; best: {caption(int(labels[first]), best[first], class_names)}",)
    boxes = input_boxes(outputs["pred_boxes"], batch["targets"])[sample, kept]
    return Prediction(lines, boxes, words)


def input_boxes(boxes: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Boxes (B, Q, 4) cxcywh in [0, 1] of each image as xyxy in pixels of the padded network input."""
    sizes = torch.stack([target["size"] for target in targets]).to(boxes.device).flip(1)  # (B, 2) as (w, h)
    return box_convert(boxes.detach().float(), "cxcywh", "xyxy") * sizes.repeat(1, 2)[:, None]


def caption(label: int, score: Tensor, class_names: Sequence[str] | None) -> str:
    """A class and its score, such as "heart 0.93"."""
    name = class_names[label] if class_names and label < len(class_names) else ""
    return f"{name or f'class {label}'} {float(score):.2f}"
