"""From relevance to boxes: the connected parts of a map that are more relevant than the rest."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_xai.evaluate.relevance_masks import otsu_masks

SMALLEST_SHARE = 0.02  # of a target's relevance: a smaller part is no region
SAME = 0.5  # boxes that overlap more than this (intersection over union) are of one region

Box = tuple[int, int, int, int]


class Region(NamedTuple):
    """A part of a relevance map: which target's, its box xyxy in pixels (the last are outside), and how much of the
    target's positive relevance it holds."""

    target: int
    box: Box
    share: float


def relevance_regions(maps: Tensor, limit: int = 3, blur: float = 0.0) -> list[Region]:
    """At most `limit` regions of relevance maps (T, h, w): first the strongest of each target in their order, then the
    second ones, and so on.

    A target's regions are the parts, connected over sides and corners, of its positive relevance above Otsu's
    threshold. Parts that hold less than SMALLEST_SHARE of it, and boxes that were found before, are left out. blur:
    standard deviation in pixels of a Gaussian over the positive relevance, without which the grain of a map that was
    found pixel by pixel is nothing but small parts. Raises ValueError for maps that are not finite, for a limit below 1
    or a blur below 0, and where no map says anything.
    """
    from scipy import ndimage

    if limit < 1:
        raise ValueError(f"limit={limit} leaves no region; it must be at least 1")
    if not bool(maps.isfinite().all()):
        raise ValueError("the relevance is not finite, so nothing can be said about its regions")
    if blur < 0:
        raise ValueError(f"blur={blur} must be at least 0 pixels")
    positive = maps.detach().float().cpu().clamp(min=0)
    if blur > 0:
        positive = torch.from_numpy(ndimage.gaussian_filter(positive.numpy(), (0, blur, blur)))
    parts = [
        _parts(target, relevance, mask)
        for target, (relevance, mask) in enumerate(zip(positive.numpy(), otsu_masks(positive).numpy(), strict=True))
    ]
    if not any(parts):
        many = f"{len(maps)} targets" if len(maps) > 1 else "the target"
        said = "the same everywhere, or in specks" if bool((positive > 0).any()) else "nowhere above 0"
        raise ValueError(f"no region stands out: the relevance of {many} is {said}")
    found: list[Region] = []
    for rank in range(max(map(len, parts))):
        for of_target in parts:
            if rank < len(of_target) and not any(overlap(of_target[rank].box, other.box) > SAME for other in found):
                found.append(of_target[rank])
    return found[:limit]


def _parts(target: int, relevance: np.ndarray, mask: np.ndarray) -> list[Region]:
    """The connected parts of a map (h, w) inside a mask, the strongest first."""
    from scipy import ndimage

    numbers, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    whole = relevance.sum(dtype=np.float64)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbers), 1):
        share = float(relevance[numbers == number].sum(dtype=np.float64) / whole)
        if share >= SMALLEST_SHARE:
            found.append(Region(target, (columns.start, rows.start, columns.stop, rows.stop), share))
    return sorted(found, key=lambda region: -region.share)


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes xyxy; 0 where both have no area."""
    across = max(min(first[2], second[2]) - max(first[0], second[0]), 0)
    down = max(min(first[3], second[3]) - max(first[1], second[1]), 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return across * down / union if (union := areas - across * down) > 0 else 0.0
