"""From relevance to masks: gray levels, Otsu's threshold, and one mask for each query that a detector keeps.

Letters: T explained targets, B images, Q object queries, (h, w) the map's cells. `valid` (T, h, w) is True where the
map is image and not padding; cells outside neither shift a threshold nor enter a mask.
"""

import torch
from torch import Tensor

from lightning_xai.explain.explanation import min_max

FOREGROUND = 255.0
NOT_KEPT = -1.0
GRAY_LEVELS = 256
SMALLEST_SHARE = 2.0**-23  # OpenCV's FLT_EPSILON: a class with a smaller share of the pixels is none


def stretch(maps: Tensor, valid: Tensor | None = None) -> Tensor:
    """Maps (T, h, w) to real numbers in 0..255: 255 (m - min) / (max - min) of each map; 0 where it is constant."""
    return min_max(maps, valid) * 255


def gray_levels(maps: Tensor, valid: Tensor | None = None) -> Tensor:
    """`stretch` truncated to uint8 (T, h, w); a constant map is 0 everywhere, and so are cells that are not valid."""
    levels = stretch(maps, valid)
    if valid is not None:
        levels = levels.masked_fill(~valid, 0.0)
    return levels.clamp(0, 255).to(torch.uint8)


def otsu_threshold(gray: Tensor, valid: Tensor | None = None) -> Tensor:
    """Otsu's threshold t (T,) int64 of each picture (T, h, w) uint8: foreground is what lies above it.

    t = argmax_t q1(t) q2(t) (mu1(t) - mu2(t))^2, the between-class variance of the 256 bins, the first of equal ones; 0
    where there is one level only. The sums run in OpenCV's order in float64, so that ties fall as there.
    Source: Otsu 1979; OpenCV's threshold with THRESH_OTSU.
    """
    if gray.dtype != torch.uint8:
        raise ValueError(f"Otsu's threshold needs gray levels of dtype uint8, not {gray.dtype}: use gray_levels first")
    counted = torch.ones_like(gray, dtype=torch.float64) if valid is None else valid.double()
    counts = gray.new_zeros(len(gray), GRAY_LEVELS, dtype=torch.float64)
    counts.scatter_add_(1, gray.flatten(1).long(), counted.flatten(1))
    scale = 1.0 / counts.sum(1)
    levels = torch.arange(GRAY_LEVELS, dtype=torch.float64, device=gray.device)
    mean = (counts * levels).sum(1) * scale
    first_mean, first_share, best = (torch.zeros_like(scale) for _ in range(3))
    threshold = torch.zeros_like(scale, dtype=torch.int64)
    for level in range(GRAY_LEVELS):
        share = counts[:, level] * scale
        first_sum = first_mean * first_share
        first_share = first_share + share
        other_share = 1.0 - first_share
        fine = torch.minimum(first_share, other_share) >= SMALLEST_SHARE
        fine &= torch.maximum(first_share, other_share) <= 1.0 - SMALLEST_SHARE
        first_mean = torch.where(fine, (first_sum + level * share) / first_share, first_sum)
        other_mean = (mean - first_share * first_mean) / other_share
        variance = first_share * other_share * (first_mean - other_mean) * (first_mean - other_mean)
        better = fine & (variance > best)
        best = torch.where(better, variance, best)
        threshold = torch.where(better, level, threshold)
    return threshold


def otsu_masks(maps: Tensor, valid: Tensor | None = None) -> Tensor:
    """Masks (T, h, w) bool of relevance maps (T, h, w): gray levels above Otsu's threshold; empty for a constant map.

    Source: Chefer et al. 2021 (Transformer-MM-Explainability, DETR's mask generator).
    """
    gray = gray_levels(maps, valid)
    masks = gray > otsu_threshold(gray, valid)[:, None, None]
    return masks if valid is None else masks & valid


def kept_queries(logits: Tensor, threshold: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """The queries whose best class has a probability above `threshold`: images, queries and classes, (T,) each.

    logits: (B, Q, K + 1), softmax with the last class for no object. Ordered by image, then query.
    """
    probabilities, classes = logits.detach().softmax(-1)[..., :-1].max(-1)
    images, queries = (probabilities > threshold).nonzero(as_tuple=True)
    return images, queries, classes[images, queries]


def query_masks(masks: Tensor, images: Tensor, queries: Tensor, shape: tuple[int, int]) -> Tensor:
    """Mask logits (B, Q, h, w) of all queries: 255 in the masks (T, h, w) of the kept ones, 0 beside, -1 elsewhere.

    images, queries (T,): whose mask each one is. shape: (B, Q). Resized bilinearly and cut at sigmoid > 0.5, every
    pixel with any weight of a foreground cell is foreground, so a mask grows by half a cell on each side: the
    reference's numbers contain this.
    """
    logits = torch.full((*shape, *masks.shape[1:]), NOT_KEPT, device=masks.device)
    logits[images, queries] = masks.to(logits.dtype) * FOREGROUND
    return logits


def valid_cells(valid_ratios: Tensor, shape: tuple[int, int]) -> Tensor:
    """Which cells (B, h, w) of a map of `shape` are image; valid_ratios (B, 2): its share of columns and of rows."""
    h, w = shape
    columns, rows = (valid_ratios * valid_ratios.new_tensor([w, h])).round().unbind(-1)
    y, x = torch.arange(h, device=rows.device), torch.arange(w, device=rows.device)
    return (y < rows[:, None])[:, :, None] & (x < columns[:, None])[:, None]
