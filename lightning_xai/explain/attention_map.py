"""How much a query attends to each cell of the feature maps: its samples' weights, splatted as they were sampled."""

import torch
from ms_deform_attn import dense_attention
from torch import Tensor

from lightning_xai.explain.recording import DeformableRecord


def level_maps(record: DeformableRecord, query: int, image: int = 0, head: int | None = None) -> list[Tensor]:
    """Weight on each cell of each level, a list of L maps (h, w), averaged over the heads (or of one head).

    A cell's number is d output / d value: each sample's weight times its bilinear coefficient there. All maps together
    sum to the share of the weights that was sampled inside the padded map.
    """
    heads = slice(None) if head is None else slice(head, head + 1)
    locations = record.sampling_locations[image : image + 1, query : query + 1, heads].float()
    weights = record.attention_weights[image : image + 1, query : query + 1, heads].float()
    cells = dense_attention(record.shapes, locations, weights)[0, :, 0].mean(0)  # (K,)
    sizes = [tuple(shape) for shape in record.shapes.tolist()]
    return [part.reshape(size) for part, size in zip(cells.split([h * w for h, w in sizes]), sizes, strict=True)]


def merged_map(maps: list[Tensor]) -> Tensor:
    """One map (h, w) of all levels on the grid of the finest one, with the same sum.

    A cell of a coarser level spreads its weight over the finer cells by the tent function of bilinear interpolation,
    scaled for each coarse cell so that nothing is gained or lost.
    """
    h, w = (max(m.shape[axis] for m in maps) for axis in (0, 1))
    return torch.stack([_spread(m.shape[0], h, m).T @ m @ _spread(m.shape[1], w, m) for m in maps]).sum(0)


def _spread(coarse: int, fine: int, like: Tensor) -> Tensor:
    """The share (coarse, fine) of each coarse cell's weight that falls to each fine cell, along one axis."""
    centres = (torch.arange(fine, dtype=like.dtype, device=like.device) + 0.5) / fine * coarse - 0.5
    cells = torch.arange(coarse, dtype=like.dtype, device=like.device)
    tent = (1 - (centres.clamp(0, coarse - 1) - cells[:, None]).abs()).clamp(min=0)
    return tent / tent.sum(1, keepdim=True)
