"""Features of new pictures: what computes those of the whole picture and of boxes in it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor


class RegionFeatures(ABC):
    """Computes what a captioner reads of a picture; `image_size` and `box_size` are the channels C_mp and C."""

    image_size: int
    box_size: int

    @abstractmethod
    def features(self, picture: Tensor, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features of a picture (C_mp,) and of each of its boxes (R, C), float32.

        picture: uint8 (3, h, w); boxes: (R, 4) xyxy in pixels, x2 and y2 behind the last pixel. Of a box that reaches
        over the picture's edge the part inside counts. Raises ValueError for another kind of picture, and for a box
        without area in it.
        """


def check_picture(picture: Tensor) -> None:
    """Raises ValueError unless it is uint8 (3, h, w) of at least one pixel."""
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
        raise ValueError(f"a picture is uint8 (3, h, w), but this one is {picture.dtype} {tuple(picture.shape)}.")


def boxes_inside(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The part of each box (R, 4) xyxy that lies in a picture of `size` (h, w), float32.

    Raises ValueError that quotes the first box which has no area there.
    """
    h, w = size
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    inside = boxes.clip(0, np.array([w, h, w, h], np.float32))
    empty = ~(inside[:, 2:] > inside[:, :2]).all(1)
    if empty.any():
        corners = ", ".join(f"{side:g}" for side in boxes[empty][0])
        raise ValueError(
            f"box ({corners}) (x1, y1, x2, y2 in pixels) has no area in the picture of {w} x {h} pixels (w x h)."
        )
    return inside
