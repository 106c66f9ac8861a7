"""Features of regions of a drawn picture by a fixed rule, which no training shaped: what the region looks like."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from lightning_xai.data.region_features import RegionFeatures, boxes_inside, check_picture

SIDE = 16  # pixels of a region that is looked at, in each direction
CELLS, DIRECTIONS = 4, 8
THUMBNAIL = 12
FEATURE_SIZE = THUMBNAIL * THUMBNAIL * 3 + CELLS * CELLS * DIRECTIONS + 4
# What is taken off each part and by what it is divided: mean and spread over drawn scenes, as a captioner learns faster
# from features that vary alike. The four numbers of the place weigh more: they alone tell left from right.
COLOURS, GRADIENTS, PLACE = (0.0, 0.5), (0.65, 0.75), (0.0, 0.15)


class DrawnFeatures(RegionFeatures):
    """`region_features` of boxes; the picture's own feature is that of the box around all of it."""

    image_size = box_size = FEATURE_SIZE

    def features(self, picture: Tensor, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check_picture(picture)
        h, w = picture.shape[1:]
        found = region_features(picture.cpu().numpy(), np.vstack([[[0, 0, w, h]], boxes_inside(boxes, (h, w))]))
        return found[0], found[1:]


def region_features(pixels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Features (R, FEATURE_SIZE) float32 of boxes (R, 4) xyxy, in pixels of a picture uint8 (3, h, w).

    The region shrunk to THUMBNAIL x THUMBNAIL colours in [-1, 1]; how strong its brightness rises in each of DIRECTIONS
    directions in CELLS x CELLS cells, of mean square 1 (histograms of oriented gradients: Dalal and Triggs, 2005); and
    the box's corners as shares of the picture in [-1, 1]; each part shifted and scaled. Nothing is read but
    the picture inside the box and its place. Raises ValueError for a box without area.
    """
    h, w = pixels.shape[1:]
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    if empty.any():
        raise ValueError(f"box {boxes[empty][0].tolist()} has no area; boxes are xyxy in pixels.")
    picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    looks = np.stack([_shrunk(picture, box, SIDE) for box in boxes])  # (R, SIDE, SIDE, 3)
    colours = np.stack([_shrunk(picture, box, THUMBNAIL) for box in boxes])
    place = 2 * boxes / np.array([w, h, w, h], np.float32) - 1
    parts = ((colours.reshape(len(boxes), -1), COLOURS), (_gradients(looks), GRADIENTS), (place, PLACE))
    return np.concatenate([(part - mean) / spread for part, (mean, spread) in parts], 1).astype(np.float32)


def _shrunk(picture: Image.Image, box: np.ndarray, side: int) -> np.ndarray:
    """The box of a picture as (side, side, 3) in [-1, 1]."""
    inside = np.clip(box, 0, [picture.width, picture.height] * 2)
    region = picture.resize((side, side), Image.Resampling.BOX, box=tuple(map(float, inside)))
    return np.asarray(region, np.float32) / 127.5 - 1


def _gradients(looks: np.ndarray) -> np.ndarray:
    """(R, CELLS^2 * DIRECTIONS) of regions (R, SIDE, SIDE, 3): of each pixel the channel that changes most counts."""
    down, right = np.gradient(looks, axis=(1, 2))
    strength = np.hypot(down, right)
    most = strength.argmax(-1)[..., None]
    strength, down, right = (np.take_along_axis(part, most, -1)[..., 0] for part in (strength, down, right))
    turn = (np.arctan2(down, right) / (2 * np.pi) * DIRECTIONS) % DIRECTIONS
    lower = np.floor(turn).astype(np.int64) % DIRECTIONS
    share = turn - np.floor(turn)
    directions = np.zeros((*strength.shape, DIRECTIONS), np.float32)
    np.put_along_axis(directions, lower[..., None], (strength * (1 - share))[..., None], -1)
    np.put_along_axis(directions, ((lower + 1) % DIRECTIONS)[..., None], (strength * share)[..., None], -1)
    cell = SIDE // CELLS
    cells = directions.reshape(len(looks), CELLS, cell, CELLS, cell, DIRECTIONS).sum((2, 4)).reshape(len(looks), -1)
    return cells / (np.linalg.norm(cells, axis=1, keepdims=True) + 1e-3) * np.sqrt(cells.shape[1])
