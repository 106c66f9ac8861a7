"""The regions of a picture that a network's explanation points at."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lightning_xai.callbacks.explanation_pictures import draw_sample, map_streams, shown_picture
from lightning_xai.cli.explain import explained_batch, picture_batch, validation_batch
from lightning_xai.cli.training import TrainingCLI
from lightning_xai.draw.palette import name_of
from lightning_xai.evaluate.relevance_regions import SAME, overlap, relevance_regions
from lightning_xai.explain.explainable import Explained, explainable_task
from lightning_xai.explain.method import Method

GRAIN = 1 / 32  # of the shorter side, over which relevance that was found pixel by pixel is blurred

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
    index: int | None = None,
) -> ExplainedRegions:
    """Explain what a configured network says of a picture, uint8 (3, h, w), and find at most `limit` regions.

    method: its name and itself. from_boxes: take the boxes of what is explained instead of its relevance. index: of the
    picture in the validation data, so that its annotations are known. Of several detections of one object only the
    first has regions. Raises ValueError or LookupError where nothing is found or nothing stands out, and TypeError for
    a task or data module that cannot say what it sees.
    """
    task, module = explainable_task(cli.model), cli.datamodule
    known = index is not None and not texts
    batch = validation_batch(module, index, None) if known else picture_batch(module, picture, texts)
    batch, found = explained_batch(cli, task, batch, dict([method]), choice, limit)
    explained, explanation = found.explained, found.by_method[method[0]]
    seen = shown_picture(batch, 0).shape[:2]
    again = repeated(explained)
    kept = [target for target in range(len(explained.names)) if target not in again]
    if from_boxes:
        if explained.boxes is None:
            raise ValueError("--regions_from boxes: this network finds no boxes; take the regions from its relevance")
        targets, boxes = kept, explained.boxes.detach().float().cpu()[kept].tolist()
        said = [explained.names[target] for target in kept]
    else:
        streams = map_streams(explanation)
        if not streams:
            raise ValueError(f"{method[0]} says nothing about the picture, so it has no regions")
        padded = tuple(batch["images"].shape[-2:])
        maps = explanation.on_pixels(padded, streams[0])[kept, : seen[0], : seen[1]]
        regions = relevance_regions(maps, limit, GRAIN * min(seen) if streams[0] in explanation.pixels else 0.0)
        targets, boxes = [kept[region.target] for region in regions], [region.box for region in regions]
        shares = [f"{region.share:.0%} of its relevance" for region in regions]
        said = [f"{explained.names[target]}: {share}" for target, share in zip(targets, shares, strict=True)]
    said += [f"{explained.names[target]}: the object of {explained.names[first]}" for target, first in again.items()]
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


def repeated(explained: Explained) -> dict[int, int]:
    """Targets that are of the same object as an earlier one, to that one: of its class, and with nearly its box."""
    if explained.boxes is None:
        return {}
    boxes, classes = explained.boxes.detach().float().cpu().tolist(), explained.classes.tolist()
    found: dict[int, int] = {}
    for target, box in enumerate(boxes):
        for first in range(target):
            if first not in found and classes[first] == classes[target] and overlap(boxes[first], box) > SAME:
                found[target] = first
                break
    return found


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
