"""A thousand random shapes, with locations where mistakes live, against the dense definition.

Longer, for one path, or under a memory checker: `python models/ops/tests/test_fuzz.py --cases 20000 --paths compiled`.
With pytest the environment variable MS_DEFORM_ATTN_FUZZ sets the number of shapes.
"""

import argparse
import os
import random
import sys
from typing import NamedTuple

import pytest
import torch
from ms_deform_attn import ms_deform_attn, ms_deform_attn_fused, use_path
from ms_deform_attn.paths import available_paths
from torch import Tensor

CASES = int(os.environ.get("MS_DEFORM_ATTN_FUZZ", "1000"))
BLOCKS = 20
NAN, INF = float("nan"), float("inf")
PATH_NAMES = available_paths(torch.device("cpu"))

# Largest error in units of the largest expected number, and how near to a cell centre rounding decides the cell.
TOLERANCE = {torch.float64: (1e-11, 1e-7), torch.float32: (2e-5, 1e-3)}


class Case(NamedTuple):
    """A problem. Of the fused entry: locations are offsets, weights are logits."""

    value: Tensor
    shapes: Tensor
    locations: Tensor
    weights: Tensor
    reference_points: Tensor | None
    cotangent: Tensor

    @property
    def leaves(self) -> dict[str, Tensor]:
        named = {"value": self.value, "reference_points": self.reference_points}
        named |= {"locations or offsets": self.locations, "weights or logits": self.weights}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


class Expected(NamedTuple):
    """What the definition gives, and what of it can be told."""

    results: dict[str, Tensor]  # output and gradients
    undefined: Tensor  # (B, Q, H): heads that a NaN reaches
    at_jump: Tensor  # (B, Q, H, L, P, 2): coordinates whose gradient depends on rounding
    untouched: Tensor  # (B, S, H): cells that no point reads


def positions(size: int, special: bool, draws: random.Random) -> float:
    """One coordinate over a map of `size` cells: mostly anywhere around it, else where cells end, else wild."""
    cell = draws.randint(-2, size + 1)
    kind = draws.random()
    if not special or kind < 0.4:
        return draws.uniform(-0.3, 1.3)
    if kind < 0.6:
        return (cell + 0.5) / size  # a centre: exactly one cell has a coefficient
    if kind < 0.75:
        return cell / size  # an edge between cells; the map's own edges are 0 and 1
    if kind < 0.8:
        return draws.choice([-0.5, size + 0.5, -1.0, size - 0.5]) / size + draws.choice([-1e-6, 0.0, 1e-6])
    return draws.choice([1e5, -1e5, 3e9, -3e9, 2.0**31 / size, -(2.0**31) / size, 1e19, 1e30, -1e30, INF, -INF])


def draw_case(seed: int, fused: bool) -> Case:
    """The case of a seed: float64 or float32, contiguous or not, with or without special locations, zeros and NaN."""
    draws, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    dtype = torch.float64 if seed % 2 == 0 else torch.float32
    while True:
        B, Q = draws.randint(1, 3), draws.choice([0, 1, 2, *(draws.randint(3, 40) for _ in range(4))])
        if draws.random() < 0.1:
            Q = draws.randint(50, 400)
        H, P, C, L = draws.randint(1, 9), draws.randint(1, 8), draws.randint(1, 70), draws.randint(1, 5)
        if B * Q * H * L * P <= 1500:
            break
    sides = [1, 2, 4, 8, *range(1, 10)]
    levels = [(draws.choice(sides), draws.choice(sides)) for _ in range(L)]
    if draws.random() < 0.1:
        levels[0] = draws.choice([(1, 40), (40, 1), (1, 1)])
    special, poisoned = draws.random() < 0.7, draws.random() < 0.2
    shapes = torch.tensor(levels)
    sizes = shapes.flip(-1)[:, None].double()
    numbers = [positions(w_or_h, special, draws) for _ in range(B * Q * H) for h, w in levels for w_or_h in (w, h) * P]
    locations = torch.tensor(numbers, dtype=torch.float64).view(B, Q, H, L, P, 2)
    weights = torch.randn(B, Q, H, L, P, generator=generator, dtype=torch.float64)
    reference = None
    if fused:
        reference = torch.rand(B, Q, L, draws.choice([2, 4]), generator=generator, dtype=torch.float64)
        if reference.shape[-1] == 2:
            # A multiple of 1/64 and an offset of whole and half cells meet exactly where both sides are powers of two.
            reference = (reference * 64).round() / 64
            locations = (locations - reference[:, :, None, :, None]) * sizes
        else:
            # The gradient of a box's size is a product with the offset, in which 0 times infinity is NaN.
            locations = locations.nan_to_num(posinf=1e30, neginf=-1e30).clamp(-1e30, 1e30)
        if L * P > 1 and draws.random() < 0.3:
            weights[..., 0, 0] = -INF
    elif special:
        weights[torch.rand(weights.shape, generator=generator) < 0.1] = 0
    if poisoned:
        locations[torch.rand(locations.shape, generator=generator) < 0.01] = NAN
        weights[torch.rand(weights.shape, generator=generator) < 0.01] = NAN
    value = torch.randn(B, int(shapes.prod(1).sum()), H, C, generator=generator, dtype=torch.float64)
    cotangent = torch.randn(B, Q, H * C, generator=generator, dtype=torch.float64)
    tensors = [t if t is None else t.to(dtype) for t in (value, locations, weights, reference, cotangent)]
    if draws.random() < 0.3:
        tensors = [t if t is None else t.movedim(-1, 0).contiguous().movedim(0, -1) for t in tensors]
    value, locations, weights, reference, cotangent = tensors
    return Case(value, shapes, locations, weights, reference, cotangent)


def arithmetic(case: Case, leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Locations and weights of a case, by the formulas of the paper."""
    locations, weights = leaves["locations or offsets"], leaves["weights or logits"]
    if case.reference_points is None:
        return locations, weights
    reference = leaves["reference_points"][:, :, None, :, None]
    sizes = case.shapes.flip(-1)[:, None].double()
    step = 1 / sizes if reference.shape[-1] == 2 else reference[..., 2:] * 0.5 / locations.shape[4]
    return reference[..., :2] + locations * step, weights.flatten(3).softmax(-1).view(weights.shape)


def hats(position: Tensor, size: int) -> Tensor:
    """(..., size): what each cell contributes to a position; the slope at a centre is that of the cell on its right."""
    cells = torch.arange(size, dtype=position.dtype)
    left = position.floor().detach()[..., None]
    fraction = position[..., None] - left
    return torch.where(cells == left, 1 - fraction, torch.where(cells == left + 1, fraction, 0))


def definition(case: Case) -> Expected:
    """Output and gradients through the dense matrix, in float64."""
    leaves = {name: tensor.double().requires_grad_() for name, tensor in case.leaves.items()}
    locations, weights = arithmetic(case, leaves)
    bad = locations.isnan().any(-1) | weights.isnan()
    locations, weights = torch.where(bad[..., None], -9.0, locations), torch.where(bad, 0.0, weights)
    rows, touched, jumps = [], [], []
    for level, (h, w) in enumerate(case.shapes.tolist()):
        x, y = locations[:, :, :, level, :, 0] * w - 0.5, locations[:, :, :, level, :, 1] * h - 0.5
        across, down = hats(x, w), hats(y, h)  # (B, Q, H, P, w), (B, Q, H, P, h)
        rows.append(torch.einsum("bqnpy,bqnpx,bqnp->bnqyx", down, across, weights[:, :, :, level]).flatten(-2))
        with torch.no_grad():
            jump_x, jump_y = _depends_on_rounding(x, w, case), _depends_on_rounding(y, h, case)
            jumps.append(torch.stack([jump_x, jump_y], -1))
            reads = _reads(y, h, jump_y), _reads(x, w, jump_x)
            touched.append(torch.einsum("bqnpy,bqnpx->byxn", *reads).flatten(1, 2) > 0)
    B, Q, H = locations.shape[:3]
    output = torch.einsum("bnqs,bsnc->bqnc", torch.cat(rows, -1), leaves["value"]).reshape(case.cotangent.shape)
    grads = torch.autograd.grad(output, list(leaves.values()), case.cotangent.double())
    undefined = bad.flatten(3).any(-1)
    heads = output.detach().view(B, Q, H, case.value.shape[3])
    output = heads.masked_fill(undefined[..., None], NAN).flatten(2)
    results = {"output": output, **dict(zip(leaves, grads, strict=True))}
    return Expected(results, undefined, torch.stack(jumps, 3), ~torch.cat(touched, 1))


def _depends_on_rounding(position: Tensor, size: int, case: Case) -> Tensor:
    """Whether rounding decides the cell: near a centre, unless the whole computation is exact there."""
    distance = (position - position.round()).abs()
    of_boxes = case.reference_points is not None and case.reference_points.shape[-1] == 4
    exact = (distance == 0) & ((size & (size - 1) == 0) and not of_boxes)
    beside_the_map = (position > -2) & (position < size + 1)
    return (distance < TOLERANCE[case.value.dtype][1]) & beside_the_map & ~exact


def _reads(position: Tensor, size: int, at_jump: Tensor) -> Tensor:
    """(..., size): 1 at the two cells around a position, three where rounding decides which two."""
    slack = at_jump * 1e-3
    cells = torch.arange(size)
    first, last = (position - slack).floor(), (position + slack).floor() + 1
    return ((cells >= first[..., None]) & (cells <= last[..., None])).double()


def computed(case: Case) -> dict[str, Tensor]:
    """Output and gradients of the path in force."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in case.leaves.items()}
    value, locations, weights = leaves["value"], leaves["locations or offsets"], leaves["weights or logits"]
    if case.reference_points is None:
        output = ms_deform_attn(value, case.shapes, locations, weights)
    else:
        output = ms_deform_attn_fused(value, case.shapes, leaves["reference_points"], locations, weights)
    grads = torch.autograd.grad(output, list(leaves.values()), case.cotangent)
    return {"output": output.detach(), **dict(zip(leaves, grads, strict=True))}


def comparable(case: Case, expected: Expected, name: str) -> Tensor:
    """Which numbers of a result are defined, broadcastable to it."""
    fine = ~expected.undefined  # (B, Q, H)
    if name == "output":
        return torch.ones(())
    if name == "value":  # where a NaN reaches a head of an image, it may reach that head's cells
        return fine.all(1)[:, None, :, None]
    if name == "weights or logits":
        return fine[..., None, None]
    smooth = fine[..., None, None, None] & ~expected.at_jump
    if name == "reference_points":
        smooth = smooth.all(4).all(2)  # (B, Q, L, 2)
        return torch.cat([smooth] * (case.reference_points.shape[-1] // 2), -1)
    return smooth


def complaints(case: Case, expected: Expected) -> list[str]:
    """What is wrong with the path in force in this case."""
    wrong = []
    try:
        results = computed(case)
    except RuntimeError as error:
        return [f"raises {error}"]
    for name, ours in results.items():
        theirs = expected.results[name]
        if ours.shape != theirs.shape or ours.dtype != case.value.dtype:
            wrong.append(f"{name} is {ours.dtype} {tuple(ours.shape)}, expected {tuple(theirs.shape)}")
            continue
        # Gradients of one level's locations grow with its size: the scale is that of the largest number all the same.
        scale = theirs.nan_to_num(0, 0, 0).abs().max() if theirs.numel() else torch.ones(())
        error = (ours.double() - theirs).abs()
        error[(ours == theirs) | (ours.isnan() & theirs.isnan())] = 0
        error = torch.where(comparable(case, expected, name).bool(), error, 0.0).nan_to_num(INF, INF)
        if name == "value":  # what a NaN may reach is NaN or right
            beside = torch.where(ours.isnan(), 0.0, (ours.double() - theirs).abs())
            error = torch.maximum(error, beside)
        if error.numel() and error.max() > TOLERANCE[case.value.dtype][0] * scale.clamp(min=1):
            where = tuple(torch.unravel_index(error.argmax(), error.shape))
            index = tuple(int(i) for i in where)
            what = "output" if name == "output" else f"gradient of {name}"
            wrong.append(f"{what} at {index} is {ours[index]:.9g}, expected {theirs[index]:.9g}")
    return wrong


def failures(seeds: range, names: list[str]) -> list[str]:
    """A sentence for every path, seed and entry that went wrong."""
    found, stains, threads = [], (NAN, INF, -INF), torch.get_num_threads()
    for seed in seeds:
        torch.set_num_threads(3 if seed % 7 == 0 else 1)
        for fused in (False, True) if seed % 3 == 0 else (False,):
            case = draw_case(seed, fused)
            expected = definition(case)
            stained = case.value.clone()
            stained[expected.untouched] = stains[seed % 3]
            for name in names:
                with use_path(name):
                    wrong = complaints(case, expected)
                    if seed % 5 == 0:
                        stain = f"with {stains[seed % 3]} in cells that no point touches"
                        wrong += [f"{stain}, {w}" for w in complaints(case._replace(value=stained), expected)]
                entry = "fused" if fused else "operator"
                shape = f"{tuple(case.value.shape)} {case.shapes.tolist()} {tuple(case.weights.shape)}"
                found += [f"{name}, seed {seed}, {entry}, {shape}: {sentence}" for sentence in wrong]
    torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize("block", range(BLOCKS))
def test_equals_the_dense_definition(block):
    seeds = range(block * CASES // BLOCKS, (block + 1) * CASES // BLOCKS)
    wrong = failures(seeds, PATH_NAMES)
    assert not wrong, f"{len(wrong)} differences:\n" + "\n".join(wrong[:20])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--paths", nargs="+", default=PATH_NAMES, choices=PATH_NAMES)
    options = parser.parse_args()
    wrong = 0
    for first in range(options.first, options.first + options.cases, 100):
        found = failures(range(first, min(first + 100, options.first + options.cases)), options.paths)
        wrong += len(found)
        print("\n".join([*found, f"seeds from {first}: {len(found)} differences"]), flush=True)
    print(f"{options.cases} shapes, paths {', '.join(options.paths)}: {wrong} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
