"""What every path takes on every device that is here: strides, empty tensors, types, threads; the choice of a path."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ms_deform_attn import ms_deform_attn, ms_deform_attn_fused, use_path
from ms_deform_attn.paths import available_paths

LEVELS = [(3, 4), (2, 2)]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PLACES = [(name, device) for device in DEVICES for name in available_paths(torch.device(device))]
CLOSE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
    torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2},
}


@pytest.fixture(params=PLACES, ids="-".join)
def device(request):
    """The device of a path, which computes everything in this test."""
    name, device = request.param
    with use_path(name):
        yield device


@pytest.fixture
def inputs(device, problem):
    """value, shapes, locations, weights on the device of the path."""

    def make(**options):
        tensors = problem(options.pop("levels", LEVELS), **options)
        return tuple(t if t.dtype == torch.int64 else t.to(device) for t in tensors)

    return make


@pytest.fixture
def fused_inputs(inputs):
    """value, shapes, reference points, offsets, logits on the device of the path."""

    def make(coordinates=2, **options):
        value, shapes, locations, weights = inputs(**options)
        B, Q, _, L = locations.shape[:4]
        generator = torch.Generator().manual_seed(7)
        reference = torch.rand(B, Q, L, coordinates, generator=generator).to(locations)
        return value, shapes, reference, (locations - 0.5) * 3, 2 * weights

    return make


def leaves_of(arguments):
    return [t.detach().requires_grad_() if t.is_floating_point() else t for t in arguments]


def gradients(attend, arguments, cotangent):
    leaves = leaves_of(arguments)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return torch.autograd.grad(attend(*leaves), wanted, cotangent)


def assert_close(ours, theirs, dtype=torch.float64):
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, **CLOSE[dtype])


@pytest.mark.parametrize("fused", [False, True])
def test_any_strides(fused, inputs, fused_inputs):
    attend, arguments = (ms_deform_attn_fused, fused_inputs(4)) if fused else (ms_deform_attn, inputs())
    strided = [t.movedim(0, -1).flip(-1).contiguous().flip(-1).movedim(-1, 0) for t in arguments]
    assert not any(t.is_contiguous() for t in strided)
    cotangent = torch.randn(2, 6, 5, dtype=torch.float64).to(arguments[0]).transpose(1, 2)
    assert torch.equal(attend(*strided), attend(*arguments))
    for ours, theirs in zip(
        gradients(attend, strided, cotangent), gradients(attend, arguments, cotangent.contiguous()), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_expanded_tensors(inputs):
    """Strides of zero: one image for all of a batch, one weight for all points, the cotangent of a sum."""
    value, shapes, locations, weights = inputs(B=1)
    expanded = value.expand(3, -1, -1, -1), shapes, locations.expand(3, -1, -1, -1, -1, -1), weights[..., :1, :1]
    expanded = (*expanded[:3], expanded[3].expand(3, 5, 2, 2, 2))
    dense = [t.contiguous() for t in expanded]
    ones = torch.ones((), dtype=value.dtype, device=value.device).expand(3, 5, 6)
    assert_close(gradients(ms_deform_attn, expanded, ones), gradients(ms_deform_attn, dense, ones.contiguous()))


@pytest.mark.parametrize("empty", [{"B": 0}, {"Q": 0}, {"H": 0}, {"C": 0}, {"P": 0}, {"levels": []}], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_empty_inputs(empty, fused, inputs, fused_inputs):
    attend, make = (ms_deform_attn_fused, fused_inputs) if fused else (ms_deform_attn, inputs)
    leaves = leaves_of(make(**dict(empty)))
    output = attend(*leaves)
    value, others = leaves[0], leaves[2:]
    assert output.shape == (value.shape[0], others[-1].shape[1], value.shape[2] * value.shape[3])
    assert (output == 0).all()
    for leaf, grad in zip((value, *others), torch.autograd.grad(output.sum(), (value, *others)), strict=True):
        assert grad.shape == leaf.shape and (grad == 0).all()


TYPES = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float64),
]


@pytest.mark.parametrize(("of_value", "of_others"), TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("fused", [False, True])
def test_types(of_value, of_others, fused, inputs, fused_inputs):
    """Every combination gives what float64 gives for the same numbers, each result in its argument's type."""
    attend, arguments = (ms_deform_attn_fused, fused_inputs(C=8)) if fused else (ms_deform_attn, inputs(C=8))
    low = [arguments[0].to(of_value), arguments[1], *(t.to(of_others) for t in arguments[2:])]
    exact = [t.double() if t.is_floating_point() else t for t in low]
    cotangent = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(3)).to(arguments[0]).to(of_value)
    output = attend(*low)
    assert output.dtype == of_value
    coarsest = max(of_value, of_others, key=lambda dtype: torch.finfo(dtype).eps)
    torch.testing.assert_close(output.double(), attend(*exact), **CLOSE[of_value])
    ours, theirs = gradients(attend, low, cotangent), gradients(attend, exact, cotangent.double())
    floating = [t for t in low if t.is_floating_point()]
    assert [grad.dtype for grad in ours] == [t.dtype for t in floating]
    for our, their in zip(ours, theirs, strict=True):
        scale = their.abs().max()
        torch.testing.assert_close(our.double() / scale, their / scale, **CLOSE[coarsest])


@pytest.mark.parametrize("fused", [False, True])
def test_second_derivative_is_refused(fused, inputs, fused_inputs):
    attend, leaves = (ms_deform_attn_fused, fused_inputs()) if fused else (ms_deform_attn, inputs())
    leaves = leaves_of(leaves)
    (grad,) = torch.autograd.grad(attend(*leaves).square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="ms_deform_attn has no second derivative"):
        grad.sum().backward()


def test_inference_mode_and_defaults_do_not_matter(inputs):
    arguments = inputs(dtype=torch.float32)
    expected = ms_deform_attn(*arguments)
    grads = gradients(ms_deform_attn, arguments, torch.ones_like(expected))
    with torch.inference_mode():
        assert torch.equal(ms_deform_attn(*arguments), expected)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):  # what the caller creates goes there, what the operator creates must not
            ours = ms_deform_attn(*arguments)
            theirs = gradients(ms_deform_attn, arguments, torch.ones_like(expected))
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(ours, expected)
    assert all(torch.equal(a, b) for a, b in zip(grads, theirs, strict=True))


def test_threads_do_not_change_a_bit(device, inputs):
    if device != "cpu":
        pytest.skip("a GPU has no number of threads to set")
    arguments = inputs(B=3, Q=120, H=3, C=20, P=3, levels=[(12, 13), (7, 6)], dtype=torch.float32)
    cotangent = torch.randn(3, 120, 60, generator=torch.Generator().manual_seed(5))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            output = ms_deform_attn(*arguments)
            results.append([output, *gradients(ms_deform_attn, arguments, cotangent)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_calls_from_several_python_threads(inputs):
    several = [inputs(dtype=torch.float32, Q=40, C=9, seed=seed) for seed in range(8)]
    expected = [ms_deform_attn(*arguments) for arguments in several]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda arguments: ms_deform_attn(*arguments), several * 4))
    assert all(torch.equal(a, b) for a, b in zip(together, expected * 4, strict=True))


# --- the choice of a path


def test_a_path_that_cannot_compute_says_so(problem):
    arguments = problem(LEVELS)
    message = r"use_path\('triton'\) is in force, .* cannot compute .* on cpu"  # that path computes on CUDA alone
    with pytest.raises(RuntimeError, match=message), use_path("triton"):
        ms_deform_attn(*arguments)
    assert ms_deform_attn(*arguments).isfinite().all()


def test_unknown_paths_are_named():
    message = "path is 'cuda', expected one of compiled, weighted_rows, triton, grid_sample"
    with pytest.raises(ValueError, match=message), use_path("cuda"):
        pass
