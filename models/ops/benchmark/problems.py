"""What is computed in the benchmark: feature pyramids, queries and where they look."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

HEADS, CHANNELS, POINTS = 8, 32, 4

PYRAMIDS = {
    "800x1333": ((100, 167), (50, 84), (25, 42), (13, 21)),
    "480x640": ((60, 80), (30, 40), (15, 20), (8, 10)),
    "128x128": ((16, 16), (8, 8), (4, 4)),
}

# Name: (picture, queries); the queries of an encoder are the cells themselves.
SHAPES: dict[str, tuple[str, int | None]] = {
    "encoder": ("800x1333", None),
    "decoder": ("800x1333", 300),
    "decoder900": ("800x1333", 900),
    "encoder480": ("480x640", None),
    "decoder480": ("480x640", 300),
    "small_encoder": ("128x128", None),
    "small_decoder": ("128x128", 30),
}


class Case(NamedTuple):
    """One thing to measure, but for who computes it: names only, so that it can be sent to another process."""

    shapes: str
    batch: int
    dtype: str
    locations: str
    device: str
    entry: str  # "operator": from locations and weights; "fused": from reference points, offsets and logits
    direction: str  # "forward" or "both": forward, then the gradients of everything that is not a reference point


class Inputs(NamedTuple):
    """The tensors of a case: what the operator takes, and what a network has before the arithmetic in front of it."""

    value: Tensor  # (B, S, H, C)
    shapes: Tensor  # (L, 2)
    locations: Tensor  # (B, Q, H, L, P, 2)
    weights: Tensor  # (B, Q, H, L, P)
    reference_points: Tensor  # (B, Q, L, 2)
    offsets: Tensor  # (B, Q, H, L, P, 2)
    logits: Tensor  # (B, Q, H, L, P)
    cotangent: Tensor  # (B, Q, H * C)

    def arguments(self, entry: str) -> tuple[Tensor, ...]:
        """The arguments of a call: four of the operator, five of the fused entry."""
        if entry == "operator":
            return self.value, self.shapes, self.locations, self.weights
        return self.value, self.shapes, self.reference_points, self.offsets, self.logits

    def leaves(self, entry: str) -> tuple[Tensor, Tensor, Tensor]:
        """What is differentiated: value, where to look and how much (reference points are constants in training)."""
        return (self.value, *self.arguments(entry)[-2:])


def _cell_centres(levels: tuple[tuple[int, int], ...]) -> Tensor:
    """(S, 2): where every cell of every level lies in the picture."""
    grids = []
    for h, w in levels:
        y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        grids.append(torch.stack([x, y], -1).flatten(0, 1))
    return torch.cat(grids)


def _star() -> Tensor:
    """(H, 1, P, 2): the offsets a network starts with: head m looks towards 2 pi m / H, point i lies i cells away."""
    angles = torch.arange(HEADS) * (2 * math.pi / HEADS)
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    return directions[:, None, None] * torch.arange(1, POINTS + 1)[:, None]


def make_inputs(case: Case, levels: tuple[tuple[int, int], ...] | None = None, queries: int | None = None) -> Inputs:
    """The tensors of a case, the same in each process; levels and queries replace the case's (for warming up).

    "local": reference points at cell centres (encoder) or anywhere (decoder), offsets of an initialised network plus
    N(0, 1) cells. "uniform": every location anywhere on the map, the worst case for caches.
    Value, weights and logits have the case's type; what says where to look has float32 at least, as half precision is
    off by cells on these maps.
    """
    picture, of_shape = SHAPES[case.shapes]
    levels = levels or PYRAMIDS[picture]
    queries = queries or of_shape
    dtype = getattr(torch, case.dtype)
    precise = torch.promote_types(dtype, torch.float32)
    generator = torch.Generator().manual_seed(0)
    S, L, B = sum(h * w for h, w in levels), len(levels), case.batch
    if queries is None:
        reference = _cell_centres(levels)[None].expand(B, -1, -1)
    else:
        reference = torch.rand(B, queries, 2, generator=generator)
    Q = reference.shape[1]
    reference = reference[:, :, None].expand(-1, -1, L, -1).to(precise).contiguous()
    shapes = torch.tensor(levels)
    sizes = shapes.flip(-1)[:, None].to(precise)  # (L, 1, 2): w, h
    noise = torch.randn if case.locations == "local" else torch.rand
    offsets = noise(B, Q, HEADS, L, POINTS, 2, generator=generator).to(precise)
    if case.locations == "local":
        offsets += _star()
    else:
        offsets = (offsets - reference[:, :, None, :, None]) * sizes
    value = torch.randn(B, S, HEADS, CHANNELS, generator=generator)
    logits = torch.randn(B, Q, HEADS, L, POINTS, generator=generator)
    cotangent = torch.randn(B, Q, HEADS * CHANNELS, generator=generator)
    inputs = Inputs(
        value=value.to(dtype),
        shapes=shapes,
        locations=reference[:, :, None, :, None] + offsets / sizes,
        weights=logits.flatten(3).softmax(-1).view(logits.shape).to(dtype),
        reference_points=reference,
        offsets=offsets,
        logits=logits.to(dtype),
        cotangent=cotangent.to(dtype),
    )
    inputs = Inputs(*(tensor if tensor is shapes else tensor.to(case.device) for tensor in inputs))
    if case.direction == "both":
        for leaf in inputs.leaves(case.entry):
            leaf.requires_grad_()
    return inputs
