"""The regions of a picture that a network's explanation points at."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lightning_xai.callbacks.explanation_pictures import draw_sample, map_streams, shown_picture
from lightning_xai.cli.explain import explained_batch, picture_batch
from lightning_xai.cli.training import TrainingCLI
from lightning_xai.draw.palette import name_of
from lightning_xai.evaluate.relevance_regions import relevance_regions
from lightning_xai.explain.explainable import explainable_task
from lightning_xai.explain.method import Method

Box = tuple[int, int, int, int]


class ExplainedRegions(NamedTuple):
    """N regions, in the order in which they are to be spoken of.

    names: of the classes that they speak for, "region 1" and so on where there is none. boxes: xyxy in whole pixels of
    the picture, the last are outside. said: what was explained and how much of it each region holds, for people.
    sheet: the explanation as a picture, uint8 (h, w, 3).
    """

    names: tuple[str, ...]
    boxes: tuple[Box, ...]
    said: tuple[str, ...]
    sheet: np.ndarray


def explained_regions(
    cli: TrainingCLI,
    picture: Tensor,
    method: tuple[str, Method],
    choice: str = "predicted",
    limit: int = 3,
    texts: list[str] | None = None,
    from_boxes: bool = False,
    title: str = "",
) -> ExplainedRegions:
    """Explain what a configured network says of a picture, uint8 (3, h, w), and find at most `limit` regions.

    method: its name and itself. from_boxes: take the boxes of what is explained instead of its relevance. Raises
    ValueError or LookupError where nothing is found or nothing stands out, and TypeError for a task or data module
    that cannot say what it sees.
    """
    task, module = explainable_task(cli.model), cli.datamodule
    batch = picture_batch(module, picture, texts)
    batch, found = explained_batch(cli, task, batch, dict([method]), choice, limit)
    explained, explanation = found.explained, found.by_method[method[0]]
    seen = shown_picture(batch, 0).shape[:2]
    if from_boxes:
        if explained.boxes is None:
            raise ValueError("--regions_from boxes: this network finds no boxes; take the regions from its relevance")
        targets, boxes = range(len(explained.names)), explained.boxes.detach().float().cpu().tolist()
        said = explained.names
    else:
        streams = map_streams(explanation)
        if not streams:
            raise ValueError(f"{method[0]} says nothing about the picture, so it has no regions")
        padded = tuple(batch["images"].shape[-2:])
        regions = relevance_regions(explanation.on_pixels(padded, streams[0])[:, : seen[0], : seen[1]], limit)
        targets, boxes = [region.target for region in regions], [region.box for region in regions]
        said = [f"{explained.names[region.target]}: {region.share:.0%} of its relevance" for region in regions]
    classes = [int(explained.classes[target]) for target in targets]
    names = [
        name_of(number, task.class_names or []) if number >= 0 else f"region {place + 1}"
        for place, number in enumerate(classes)
    ]
    height, width = picture.shape[1:]
    shown = seen_part(module, (height, width), seen)
    placed = [in_picture(box, seen, shown, (height, width)) for box in boxes]
    sheets = [draw_sample(task, batch, found, sample, title) for sample in range(len(batch["images"]))]
    return ExplainedRegions(tuple(names), tuple(placed), tuple(said), np.concatenate(sheets))


def seen_part(module: Any, size: tuple[int, int], seen: tuple[int, int]) -> tuple[float, float, float, float]:
    """Which part of a picture of `size` (h, w) a network sees as `seen` (h, w), xyxy in the picture's pixels.

    Raises TypeError where the data module's transform does not say it.
    """
    if tuple(seen) == tuple(size):
        return 0.0, 0.0, float(size[1]), float(size[0])
    transform = getattr(module, "evaluation_transform", None)
    if not hasattr(transform, "seen"):
        raise TypeError(
            f"{type(transform).__name__} does not say which part of a picture the network sees: give it a method "
            "seen(height, width) that returns a box xyxy, or take a picture of the network's own size"
        )
    return transform.seen(*size)


def in_picture(
    box: Sequence[float], seen: tuple[int, int], part: Sequence[float], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """A box of what a network sees, (h, w) pixels of `seen`, in whole pixels of the picture of `size` (h, w).

    part: see `seen_part`. The box is inside the picture and at least one pixel wide and high.
    """
    sides = []
    for axis in (0, 1):  # across, down
        scale, most = (part[axis + 2] - part[axis]) / seen[1 - axis], size[1 - axis]
        low = min(max(round(part[axis] + box[axis] * scale), 0), most - 1)
        high = min(max(round(part[axis] + box[axis + 2] * scale), low + 1), most)
        sides.append((low, high))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]
