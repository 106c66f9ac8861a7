"""Maps of an image's pixels, put together for the tokens that lie on them."""

import torch
from torch import Tensor

from lightning_xai.explain.recording import Recording
from lightning_xai.explain.streams import ChosenPatches, FeatureLevels, Patches


def on_grid(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sums of maps (T, h, w) over the cells of a grid of `shape`: (T, rows * columns), with the same total."""
    for axis, cells in ((1, shape[0]), (2, shape[1])):
        size = pixels.shape[axis]
        cell = torch.arange(size, device=pixels.device) * cells // size
        summed = [*pixels.shape]
        summed[axis] = cells
        pixels = pixels.new_zeros(summed).index_add(axis, cell, pixels)
    return pixels.flatten(1)


def pooled(pixels: Tensor, layout: Patches | FeatureLevels | ChosenPatches, samples: Tensor) -> Tensor:
    """Maps (T, h, w), summed over the pixels of each token: (T, N).

    Tokens before a grid have 0; of several feature levels the finest has all. samples: (T,), whose map each is.
    """
    if isinstance(layout, FeatureLevels):
        finest = max(layout.shapes, key=lambda shape: shape[0] * shape[1])
        levels = [on_grid(pixels if shape == finest else torch.zeros_like(pixels), shape) for shape in layout.shapes]
        return torch.cat(levels, 1)
    cells = on_grid(pixels, layout.shape)
    if isinstance(layout, ChosenPatches):
        cells = cells.gather(1, layout.cells.to(cells.device)[samples])
    return torch.cat([cells.new_zeros(len(cells), layout.prefix), cells], 1)


def padding_of(recording: Recording, images: Tensor) -> Tensor | None:
    """The boolean mask (B, h, w), True on padding, that the network was given beside its images (B, C, h, w)."""
    masks = [x for x in recording.call.tensors() if x.dtype == torch.bool and x.shape == images[:, 0].shape]
    return masks[0] if len(masks) == 1 else None
