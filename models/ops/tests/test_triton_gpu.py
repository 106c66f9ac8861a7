"""The Triton kernels: on CUDA where there is a device, else by Triton's interpreter on the CPU.

The interpreter is chosen before Triton is imported, so the whole file runs again in a process of its own.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from ms_deform_attn import triton_gpu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
needs_kernels = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="see test_all_of_this_by_the_interpreter"
)

# One has a single row.
LEVELS = [(5, 4), (1, 6)]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the tests below run here themselves")
def test_all_of_this_by_the_interpreter() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--import-mode=importlib", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\d\d passed", run.stdout), run.stdout


@pytest.fixture(autouse=True)
def large_programs(monkeypatch) -> None:
    """The interpreter takes as long for one row as for many, so that programs of few rows would take minutes."""
    if INTERPRETED:
        for name in ("forward_layout", "backward_layout"):
            layout = getattr(triton_gpu, name)
            monkeypatch.setattr(triton_gpu, name, lambda *given, layout=layout: layout(*given)._replace(rows=32))


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def on_device(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(DEVICE) for tensor in tensors]


def check(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    """Equal up to the type's rounding, relative to the largest number of theirs."""
    assert ours.dtype == dtype and ours.is_contiguous()
    tolerance = TOLERANCES[dtype]
    scale = max(1.0, theirs[theirs.isfinite()].abs().max().item())
    torch.testing.assert_close(ours.cpu().double(), theirs, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def gradients(output: Tensor, inputs: list[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, cotangent)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double().requires_grad_() for tensor in tensors]


def cotangent_of(output: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


SIZES = {
    "few": {"Q": 5, "C": 3},
    "many-queries": {"Q": 40, "C": 20, "H": 1, "P": 1},
    "many-channels": {"Q": 9, "C": 71, "B": 1, "H": 3, "P": 1},
    "one-channel": {"Q": 3, "C": 1, "P": 3},
}
CASES = [("few", dtype) for dtype in TOLERANCES]
CASES += [("many-queries", torch.float32), ("many-queries", torch.bfloat16)]
CASES += [("many-channels", torch.float16), ("one-channel", torch.float64)]


@needs_kernels
@pytest.mark.parametrize("size, dtype", CASES)
def test_forward_and_backward_are_those_of_grid_sample(
    problem, by_grid_sample, monkeypatch, size: str, dtype: torch.dtype
) -> None:
    if size.startswith("many"):
        monkeypatch.setattr(triton_gpu, "ENOUGH_WARPS", 0)  # channels are taken in pieces
    value, shapes, locations, weights = problem(LEVELS, dtype=dtype, **SIZES[size])
    inputs = leaves(value, locations, weights)
    expected = by_grid_sample(inputs[0], shapes, *inputs[1:])
    cotangent = cotangent_of(expected, dtype)
    here = on_device(value, locations, weights)
    check(triton_gpu.forward(here[0], tuple(LEVELS), *here[1:]), expected, dtype)
    ours = triton_gpu.backward(cotangent.to(DEVICE), here[0], tuple(LEVELS), *here[1:])
    for our, their in zip(ours, gradients(expected, inputs, cotangent.double()), strict=True):
        check(our, their, dtype)


@needs_kernels
def test_forward_is_the_definition(problem, by_loop) -> None:
    value, shapes, locations, weights = problem(LEVELS)
    ours = triton_gpu.forward(*on_device(value), tuple(LEVELS), *on_device(locations, weights))
    check(ours, by_loop(value, shapes, locations, weights), torch.float64)


def sampled(reference: Tensor, offsets: Tensor, shapes: Tensor) -> Tensor:
    """Locations by the formulas of the paper, (w, h) being a level's size or half a box over the number of points."""
    if reference.shape[-1] == 2:
        return reference[:, :, None, :, None] + offsets / shapes.flip(-1)[:, None]
    centre, size = reference[:, :, None, :, None].split(2, -1)
    return centre + offsets / offsets.shape[4] * size * 0.5


@needs_kernels
@pytest.mark.parametrize(
    "coordinates, dtype, fixed",
    [
        (2, torch.float64, False),
        (2, torch.bfloat16, False),
        (2, torch.float32, True),
        (4, torch.float32, False),
        (4, torch.bfloat16, True),
    ],
)
def test_fused_is_softmax_and_locations_and_operator(
    problem, by_grid_sample, request, coordinates: int, dtype: torch.dtype, fixed: bool
) -> None:
    if fixed:
        request.getfixturevalue("deterministic")
    value, shapes, locations, _ = problem(LEVELS, dtype=dtype)
    B, Q, H, L, P, _ = locations.shape
    generator = torch.Generator().manual_seed(2)
    reference = torch.rand(B, Q, L, coordinates, generator=generator, dtype=torch.float64).to(dtype)
    offsets = (torch.randn(B, Q, H, L, P, 2, generator=generator, dtype=torch.float64) * 2).to(dtype)
    logits = (torch.randn(B, Q, H, L, P, generator=generator, dtype=torch.float64) * 3).to(dtype)

    inputs = leaves(value, reference, offsets, logits)
    weights = inputs[3].flatten(3).softmax(-1).view(logits.shape)
    expected = by_grid_sample(inputs[0], shapes, sampled(*inputs[1:3], shapes), weights)
    cotangent = cotangent_of(expected, dtype)
    here = on_device(value, reference, offsets, logits)
    check(triton_gpu.fused_forward(here[0], tuple(LEVELS), *here[1:]), expected, dtype)
    ours = triton_gpu.fused_backward(cotangent.to(DEVICE), here[0], tuple(LEVELS), *here[1:], True)
    for our, their in zip(ours, gradients(expected, inputs, cotangent.double()), strict=True):
        check(our, their, dtype)
    assert triton_gpu.fused_backward(cotangent.to(DEVICE), here[0], tuple(LEVELS), *here[1:], False)[1] is None


@needs_kernels
def test_types_may_differ_and_each_gradient_has_that_of_its_input(problem, by_grid_sample) -> None:
    value, shapes, locations, weights = problem(LEVELS, dtype=torch.float32)
    value = value.bfloat16()
    inputs = leaves(value, locations, weights)
    expected = by_grid_sample(inputs[0], shapes, *inputs[1:])
    cotangent = cotangent_of(expected, torch.bfloat16)
    here = on_device(value, locations, weights)
    check(triton_gpu.forward(here[0], tuple(LEVELS), *here[1:]), expected, torch.bfloat16)
    ours = triton_gpu.backward(cotangent.to(DEVICE), here[0], tuple(LEVELS), *here[1:])
    theirs = gradients(expected, inputs, cotangent.double())
    for our, their, dtype in zip(ours, theirs, (torch.bfloat16, torch.float32, torch.float32), strict=True):
        check(our, their, dtype)


@needs_kernels
def test_strides_do_not_matter(problem) -> None:
    value, _, locations, weights = on_device(*problem(LEVELS, dtype=torch.float16))
    expected = triton_gpu.forward(value, tuple(LEVELS), locations, weights)
    cotangent = torch.ones_like(expected)
    gradient = triton_gpu.backward(cotangent, value, tuple(LEVELS), locations, weights)
    # One element further, where no pair of numbers is aligned; heads and tokens swapped; every second weight.
    shifted = torch.cat([locations.new_zeros(1), locations.flatten()])[1:].view(locations.shape)
    swapped = value.transpose(1, 2).contiguous().transpose(1, 2)
    second = weights.repeat_interleave(2, -1)[..., ::2]
    pair = 2 * shifted.element_size()
    assert shifted.is_contiguous() and shifted.data_ptr() % pair != 0
    assert triton_gpu._in_pairs(shifted).data_ptr() % pair == 0  # the interpreter does not mind, a device does
    other = (swapped, tuple(LEVELS), shifted, second)
    assert torch.equal(triton_gpu.forward(*other), expected)
    constant = cotangent.new_ones(1).expand(cotangent.shape)
    for ours, theirs in zip(triton_gpu.backward(constant, *other), gradient, strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_kernels
@pytest.mark.parametrize("far", [float("inf"), -3e9, 1.5])
def test_points_far_away_have_no_part(problem, far: float) -> None:
    value, _, locations, weights = on_device(*problem(LEVELS, dtype=torch.float32, spread=(0.1, 0.9)))
    weights = weights.clone()
    locations[0, 2, 1, 1, 0, 0] = far
    locations[1, 3, 0, 0, 1] = far
    given = (value, tuple(LEVELS), locations, weights)
    output = triton_gpu.forward(*given)
    grads = triton_gpu.backward(torch.ones_like(output), *given)
    assert all(tensor.isfinite().all() for tensor in (output, *grads))
    assert not grads[1][0, 2, 1, 1, 0].any() and not grads[1][1, 3, 0, 0, 1].any()
    weights[0, 2, 1, 1, 0] = weights[1, 3, 0, 0, 1] = 0
    assert torch.equal(triton_gpu.forward(*given), output)


@needs_kernels
@pytest.mark.parametrize("which", ["y", "weight"])
def test_nan_reaches_its_own_query_and_head_alone(problem, which: str) -> None:
    value, _, locations, weights = on_device(*problem(LEVELS, dtype=torch.float32, spread=(0.1, 0.9)))
    clean = triton_gpu.forward(value, tuple(LEVELS), locations, weights)
    grads = triton_gpu.backward(torch.ones_like(clean), value, tuple(LEVELS), locations, weights)
    place = 1, 3, 0, 0, 1
    if which == "weight":
        weights[place] = float("nan")
    else:
        locations[(*place, "xy".index(which))] = float("nan")
    given = (value, tuple(LEVELS), locations, weights)
    output = triton_gpu.forward(*given).view(2, 5, 2, 3)
    assert output[1, 3, 0].isnan().all()
    output[1, 3, 0] = clean.view_as(output)[1, 3, 0]
    assert torch.equal(output, clean.view_as(output))
    ours = triton_gpu.backward(torch.ones_like(clean), *given)
    assert ours[1][place].isnan().any()
    for gradient, before in zip(ours[1:], grads[1:], strict=True):
        gradient[place] = before[place]
        assert torch.equal(gradient, before)
    if which != "weight":
        assert ours[0].isfinite().all()


@needs_kernels
def test_cells_that_no_point_touches_are_not_read(problem) -> None:
    value, _, locations, weights = on_device(*problem([(3, 4)], dtype=torch.float32, C=4, B=1))
    locations[..., 0], locations[..., 1] = 1.5 / 4, 1.0 / 3  # in the middle of column 1, between rows 0 and 1
    poisoned = torch.full_like(value, float("nan"))
    touched = [1, 4 + 1]
    poisoned[:, touched] = value[:, touched]
    output = triton_gpu.forward(poisoned, ((3, 4),), locations, weights)
    torch.testing.assert_close(output, triton_gpu.forward(value, ((3, 4),), locations, weights))
    assert output.isfinite().all()


@needs_kernels
def test_deterministic_gradient_of_value_knows_no_order(problem, deterministic) -> None:
    value, _, locations, weights = on_device(*problem(LEVELS, dtype=torch.float32, Q=40, spread=(0.2, 0.8)))
    cotangent = cotangent_of(torch.empty(2, 40, 6), torch.float32).to(DEVICE)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    forward, shuffled = (
        triton_gpu.backward(cotangent[:, rows], value, tuple(LEVELS), locations[:, rows], weights[:, rows])
        for rows in (torch.arange(40, device=DEVICE), order)
    )
    assert torch.equal(forward[0], shuffled[0])
    assert torch.equal(forward[1][:, order], shuffled[1])
    torch.use_deterministic_algorithms(False)
    atomic = triton_gpu.backward(cotangent, value, tuple(LEVELS), locations, weights)
    torch.testing.assert_close(forward[0], atomic[0], rtol=1e-5, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e33])
def test_deterministic_sums_fit_and_keep_what_is_not_finite(problem, deterministic, size: float) -> None:
    value, _, locations, weights = on_device(*problem([(3, 4)], dtype=torch.float32, Q=40, C=4, B=1, H=1))
    locations[..., 0], locations[..., 1] = 1.5 / 4, 0.5 / 3  # everything falls on cell 1
    weights = torch.ones_like(weights)
    cotangent = torch.full((1, 40, 4), size, device=DEVICE)
    gradient = triton_gpu.backward(cotangent, value, ((3, 4),), locations, weights)[0]
    expected = torch.zeros_like(value)
    expected[:, 1] = 80 * size
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)
    cotangent[0, 7, 2] = float("inf")
    locations[0, 7] = 0.5
    gradient = triton_gpu.backward(cotangent, value, ((3, 4),), locations, weights)[0]
    assert (~gradient[0, :, 0].isfinite()).nonzero().tolist() == [[5, 2], [6, 2]]
