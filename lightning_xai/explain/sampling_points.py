"""Where a query's deformable attention sampled, in pixels of the image that a person sees."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.explain.recording import DeformableRecord


@dataclass(frozen=True)
class ImageFrame:
    """How one image of a batch lies in its file, sizes as (h, w).

    padded: the batch's maps. size: the image within them, at the top left. original: the picture that is drawn on.
    """

    padded: tuple[int, int]
    size: tuple[int, int]
    original: tuple[int, int]

    def from_padded(self, xy: Tensor) -> Tensor:
        """Pixels of the original picture of points (..., 2) in [0, 1] of the padded map: sampling locations, cells."""
        factors = [p / s * o for p, s, o in zip(self.padded, self.size, self.original, strict=True)]
        return xy * xy.new_tensor(factors[::-1])

    def to_padded(self, xy: Tensor) -> Tensor:
        """The inverse of `from_padded`."""
        return xy / self.from_padded(torch.ones_like(xy))

    def from_image(self, xy: Tensor) -> Tensor:
        """Pixels of the original picture of points (..., 2) in [0, 1] of the image: reference points, box centres."""
        return xy * xy.new_tensor(self.original[::-1])

    def boxes_from_image(self, cxcywh: Tensor) -> Tensor:
        """Boxes (..., 4) xyxy in pixels of the original picture from cxcywh in [0, 1] of the image."""
        centre, half = self.from_image(cxcywh[..., :2]), self.from_image(cxcywh[..., 2:]) / 2
        return torch.cat([centre - half, centre + half], -1)

    def extent(self) -> tuple[float, float]:
        """Width and height in pixels of the original picture that the padded map covers."""
        return tuple(self.from_padded(torch.ones(2, dtype=torch.float64)).tolist())


@dataclass(frozen=True)
class SamplingPoints:
    """The N samples of one query, in the order (head, level, point): xy (N, 2) in pixels, weights (N,)."""

    xy: Tensor
    weights: Tensor


def sampling_points(
    record: DeformableRecord,
    frame: ImageFrame,
    query: int,
    image: int = 0,
    head: int | None = None,
    level: int | None = None,
    point: int | None = None,
) -> SamplingPoints:
    """The samples of query number `query` of image number `image`; None means all heads, levels or points."""
    chosen = tuple(slice(None) if i is None else slice(i, i + 1) for i in (head, level, point))
    locations = record.sampling_locations[(image, query, *chosen)].float()
    weights = record.attention_weights[(image, query, *chosen)].float()
    return SamplingPoints(frame.from_padded(locations.flatten(0, 2)), weights.flatten())


def cell_of(shapes: Tensor, level: int, xy: tuple[float, float]) -> int:
    """The encoder token whose cell of map `level` holds the point (x, y), given in [0, 1] of the padded map."""
    sizes = [tuple(shape) for shape in shapes.tolist()]
    if not 0 <= level < len(sizes):
        raise ValueError(f"there is no feature level {level}; levels go from 0 to {len(sizes) - 1}")
    x, y = xy
    if not (0 <= x < 1 and 0 <= y < 1):
        raise ValueError(f"position ({x:.3g}, {y:.3g}) lies outside the image; both numbers are at least 0 and below 1")
    h, w = sizes[level]
    return sum(rows * columns for rows, columns in sizes[:level]) + int(y * h) * w + int(x * w)


def cell_centre(shapes: Tensor, token: int) -> Tensor:
    """The reference point of an encoder token: the centre (x, y) of its cell in [0, 1] of the padded map."""
    first = 0  # token of the level
    for h, w in shapes.tolist():
        cell = token - first
        if cell < h * w:
            return torch.tensor([(cell % w + 0.5) / w, (cell // w + 0.5) / h])
        first += h * w
    raise ValueError(f"token {token} lies beyond the last feature level; there are {first} tokens")
