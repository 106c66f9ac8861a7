"""Who computes in the benchmark: the formulation to beat, every path of the package, and other people's packages."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch
import torch.nn.functional as F
from ms_deform_attn import attention_weights, ms_deform_attn, ms_deform_attn_fused, sampling_locations, use_path
from ms_deform_attn.paths import PATHS
from torch import Tensor

from benchmark.problems import Case, Inputs

# Take part where they are named only. Inductor compiles for a minute, for one size.
ON_REQUEST = ("reference_inductor", "embedding_bag", "embedding_bag_inductor")

Attend = Callable[..., Tensor]
Levels = tuple[tuple[int, int], ...]


class Contestant(NamedTuple):
    """Somebody who can compute a case. A function that is None: this contestant has no such entry."""

    name: str
    operator: Attend | None  # (value, shapes, locations, weights)
    fused: Attend | None  # (value, shapes, reference_points, offsets, logits)
    context: Callable[[], AbstractContextManager] = nullcontext
    differentiable: bool = True

    def enters(self, case: Case) -> bool:
        """Whether it takes part in this case."""
        takes_part = getattr(self, case.entry) is not None
        return takes_part and (self.differentiable or case.direction == "forward")

    def run(self, case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
        """The output and, in direction "both", the gradients of the leaves."""
        attend, arguments = getattr(self, case.entry), inputs.arguments(case.entry)
        with self.context():
            if case.direction == "forward":
                with torch.no_grad():
                    return (attend(*arguments),)
            output = attend(*arguments)
            return (output.detach(), *torch.autograd.grad(output, inputs.leaves(case.entry), inputs.cotangent))


def reference(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The formulation of the original repository and of transformers: grid_sample a level, stacked, weighted, summed.

    In float32 at least, which is what the original's kernel casts half precision to.
    """
    dtype = value.dtype
    wide = torch.promote_types(dtype, torch.float32)
    value, locations, weights = value.to(wide), locations.to(wide), weights.to(wide)
    B, _, H, C = value.shape
    Q, L, P = weights.shape[1], weights.shape[3], weights.shape[4]
    levels = shapes.tolist()
    grids = 2 * locations - 1
    samples = []
    for level, (maps, (h, w)) in enumerate(zip(value.split([h * w for h, w in levels], dim=1), levels, strict=True)):
        maps = maps.flatten(2).transpose(1, 2).reshape(B * H, C, h, w)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(B * H, 1, Q, L * P)
    output = (torch.stack(samples, -2).flatten(-2) * weights).sum(-1).view(B, H * C, Q)
    return output.transpose(1, 2).contiguous().to(dtype)


def embedding_bag(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The four cells of each point as rows of a table, summed by one `embedding_bag`: what a compiler fuses."""
    B, S, H, C = value.shape
    _, Q, _, L, P = weights.shape
    sizes = shapes.flip(-1)  # (L, 2): w, h
    starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
    position = locations * sizes[:, None].to(locations.dtype) - 0.5
    corner = position.floor()
    fraction = position - corner
    image = torch.arange(B, dtype=torch.int32).view(B, 1, 1, 1, 1) * S
    head = torch.arange(H, dtype=torch.int32).view(H, 1, 1)
    width, height = sizes.int()[:, 0, None], sizes.int()[:, 1, None]
    rows, coefficients = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = corner[..., 0].int() + dx, corner[..., 1].int() + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            across = fraction[..., 0] if dx else 1 - fraction[..., 0]
            down = fraction[..., 1] if dy else 1 - fraction[..., 1]
            cell = torch.where(inside, row * width + column, 0) + starts.int()[:, None]
            rows.append((image + cell) * H + head)
            coefficients.append(torch.where(inside, across * down * weights, 0))
    bags = B * Q * H
    rows = torch.stack(rows, -1).view(bags, L * P * 4)
    coefficients = torch.stack(coefficients, -1).view(bags, L * P * 4).to(value.dtype)
    table = value.reshape(B * S * H, C)
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=coefficients).view(B, Q, H * C)


def _original_arithmetic(attend: Attend) -> Attend:
    """The arithmetic in front as the original module writes it, then the operator."""

    def whole(value: Tensor, shapes: Tensor, reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        on_device, _ = _level_table(_levels(shapes), value.device)
        locations = reference_points[:, :, None, :, None] + offsets / on_device.flip(-1)[None, None, None, :, None]
        return attend(value, shapes, locations, F.softmax(logits.flatten(3), -1).view(logits.shape))

    return whole


def _by_parts(value: Tensor, shapes: Tensor, reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    locations = sampling_locations(reference_points, offsets, shapes)
    return ms_deform_attn(value, shapes, locations, attention_weights(logits))


def _levels(shapes: Tensor) -> Levels:
    return tuple((h, w) for h, w in shapes.tolist())


@cache
def _level_table(levels: Levels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Shapes and first tokens of the levels on the device, made once: peers expect them there."""
    shapes = torch.tensor(levels, dtype=torch.int64)
    return shapes.to(device), (shapes.prod(1).cumsum(0) - shapes.prod(1)).to(device)


def _transformers() -> Contestant:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    module = MultiScaleDeformableAttention()

    def attend(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        table, starts = _level_table(_levels(shapes), value.device)
        return module(value, table, list(_levels(shapes)), starts, locations.to(value.dtype), weights, 64)

    return Contestant("transformers", attend, _original_arithmetic(attend))


def _deformops() -> Contestant:
    from deformops.registry import msda

    def attend(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        table = _level_table(_levels(shapes), value.device)
        return msda(value, *table, locations, weights)

    def whole(value: Tensor, shapes: Tensor, reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        locations = sampling_locations(reference_points, offsets, shapes)
        table = _level_table(_levels(shapes), value.device)
        return msda(value, *table, locations, logits, softmax=True)

    return Contestant("deformops", attend, whole)


def _reference_inductor() -> Contestant:
    return Contestant("reference_inductor", torch.compile(reference, dynamic=False), None)


def _embedding_bag() -> Contestant:
    return Contestant("embedding_bag", embedding_bag, None, differentiable=False)


def _embedding_bag_inductor() -> Contestant:
    compiled = torch.compile(embedding_bag, dynamic=False)
    return Contestant("embedding_bag_inductor", compiled, None, differentiable=False)


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def contestants(device: str, dtype: str) -> dict[str, Callable[[], Contestant]]:
    """Everybody who can compute on this device in this type, the reference first; calling one imports what it needs."""
    there = {"reference": partial(Contestant, "reference", reference, _original_arithmetic(reference))}
    probe = torch.empty(1, device=device, dtype=getattr(torch, dtype))
    for path in PATHS:
        if path.computes(probe):
            context, fused = partial(use_path, path.name), f"{path.name}+fused"
            there[path.name] = partial(Contestant, path.name, ms_deform_attn, _by_parts, context)
            there[fused] = partial(Contestant, fused, None, ms_deform_attn_fused, context)
    # In half precision transformers calls grid_sample as it is, which on a CPU gives numbers like 1e37.
    if _installed("transformers") and (device != "cpu" or probe.element_size() >= 4):
        there["transformers"] = _transformers
    if _installed("deformops"):
        there["deformops"] = _deformops
    there["reference_inductor"] = _reference_inductor
    if device == "cpu":
        there["embedding_bag"] = _embedding_bag
        there["embedding_bag_inductor"] = _embedding_bag_inductor
    return there
