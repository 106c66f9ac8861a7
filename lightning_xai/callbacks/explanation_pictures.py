"""One sample of a batch with what a task says about it and why, as a picture."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_xai.draw.explanation_sheet import ExplainedTarget, draw_explanations
from lightning_xai.draw.palette import name_of
from lightning_xai.explain.explain_batch import BatchExplanations
from lightning_xai.explain.explainable import Explainable
from lightning_xai.explain.explanation import Explanation
from lightning_xai.explain.streams import ObjectQueries, Words


def draw_sample(
    task: Explainable, batch: Mapping[str, Any], found: BatchExplanations, sample: int = 0, title: str = ""
) -> np.ndarray:
    """Input | prediction | one map a method, a row each target of the sample; below, its text with coloured words."""
    picture = shown_picture(batch, sample)
    h, w = picture.shape[:2]
    prediction = task.prediction(found.outputs, batch, sample)
    boxes = None if prediction.boxes is None else prediction.boxes.detach().float().cpu().numpy()
    annotated = _annotated_boxes(batch, sample)
    return draw_explanations(
        picture,
        [_target(found, number, (h, w), tuple(batch["images"].shape[-2:]), annotated) for number in _of(found, sample)],
        prediction.lines,
        boxes,
        prediction.labels,
        None if annotated is None else annotated.numpy(),
        _input_caption(task, batch, sample),
        "\n".join(line for line in (title, found.without) if line),
    )


def shown_picture(batch: Mapping[str, Any], sample: int) -> np.ndarray:
    """The picture of a sample without its padding, uint8 (h, w, 3)."""
    picture = batch["images"][sample]
    if "mask" in batch:
        filled = ~batch["mask"][sample]
        picture = picture[:, : int(filled.any(1).sum()), : int(filled.any(0).sum())]
    return np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy())


def map_streams(explanation: Explanation) -> list[str]:
    """The explained streams whose tokens lie on the picture."""
    return [name for name in explanation.relevance if not isinstance(_layout(explanation, name), Words | ObjectQueries)]


def word_streams(explanation: Explanation) -> list[str]:
    """The explained streams that are text."""
    return [name for name in explanation.relevance if isinstance(_layout(explanation, name), Words)]


def said_words(explanation: Explanation, target: int, stream: str) -> list[tuple[str, float]]:
    """The pieces that somebody wrote, without marks such as the end of a text, and their relevance."""
    marks = _layout(explanation, stream).marks
    return [(piece, value) for piece, value in explanation.words(target, stream) if piece not in marks]


def _layout(explanation: Explanation, stream: str):
    return explanation.streams[stream].layout


def _of(found: BatchExplanations, sample: int) -> list[int]:
    if found.explained is None:
        return []
    return (found.explained.targets.samples == sample).nonzero()[:, 0].tolist()


def _target(
    found: BatchExplanations, number: int, size: tuple[int, int], padded: tuple[int, int], annotated: Tensor | None
) -> ExplainedTarget:
    explained = found.explained
    maps, words = {}, {}
    for method, explanation in found.by_method.items():
        streams = map_streams(explanation)
        for stream in streams:
            name = method if len(streams) == 1 else f"{method}, {stream}"
            pixels = explanation.on_pixels(padded, stream)[number, : size[0], : size[1]]
            maps[name] = pixels.float().cpu().numpy()
        for stream in word_streams(explanation):
            name = method if len(word_streams(explanation)) == 1 else f"{method}, {stream}"
            words[name] = said_words(explanation, number, stream)
    truth = None
    if explained.objects is not None and annotated is not None:
        truth = annotated[int(explained.objects[number])].numpy()
    box = None if explained.boxes is None else explained.boxes[number].detach().float().cpu().numpy()
    return ExplainedTarget(explained.names[number], maps, words, box, truth)


def _annotated_boxes(batch: Mapping[str, Any], sample: int) -> Tensor | None:
    boxes = batch["targets"][sample].get("boxes") if "targets" in batch else None
    return None if boxes is None else boxes.detach().float().cpu()


def _input_caption(task: Explainable, batch: Mapping[str, Any], sample: int) -> str:
    """What is known of a sample: its class or its text."""
    if "texts" in batch:
        return f"input: {batch['texts'][sample]}"
    label = int(torch.as_tensor(batch["labels"][sample])) if "labels" in batch else -1
    return "input" if label < 0 else f"input: {name_of(label, getattr(task, 'class_names', None) or [])}"
