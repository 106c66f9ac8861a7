import pytest
import torch
from ms_deform_attn import (
    attention_weights,
    available_paths,
    ms_deform_attn,
    ms_deform_attn_fused,
    sampling_locations,
    use_path,
)
from torch.overrides import TorchFunctionMode

LEVELS = {
    "one level": [(3, 4)],
    "four levels": [(4, 7), (3, 3), (2, 1), (1, 1)],
    "one row, one column, one cell": [(1, 5), (5, 1), (1, 1)],
}


@pytest.fixture(autouse=True, params=available_paths(torch.device("cpu")))
def path(request):
    """Everything in this file holds for every implementation."""
    with use_path(request.param):
        yield request.param


def gradients(attend, inputs, cotangent):
    value, shapes, locations, weights = inputs
    leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
    return torch.autograd.grad(attend(leaves[0], shapes, *leaves[1:]), leaves, cotangent)


def weird_locations(inputs):
    """Locations on cell centres and borders, on the map's border, one cell outside, far away."""
    value, shapes, locations, weights = inputs
    w = shapes[:, 1].repeat_interleave(locations.shape[4]).view(locations.shape[3:5])
    h = shapes[:, 0].repeat_interleave(locations.shape[4]).view(locations.shape[3:5])
    special = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 40.0, -40.0], dtype=locations.dtype)
    pick = torch.randint(len(special), locations.shape, generator=torch.Generator().manual_seed(1))
    cells = special[pick] + 0.5
    return value, shapes, cells / torch.stack([w, h], -1), weights


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS.keys())
@pytest.mark.parametrize("weird", [False, True])
def test_equals_the_definition(levels, weird, problem, by_loop):
    inputs = problem(levels)
    if weird:
        inputs = weird_locations(inputs)
    torch.testing.assert_close(ms_deform_attn(*inputs), by_loop(*inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS.keys())
@pytest.mark.parametrize("Q", [3, 60])
def test_gradients_equal_those_of_grid_sample(levels, Q, problem, by_grid_sample):
    inputs = problem(levels, Q=Q, B=3)
    cotangent = torch.randn(3, Q, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours, theirs = gradients(ms_deform_attn, inputs, cotangent), gradients(by_grid_sample, inputs, cotangent)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-12)


def test_location_gradients_on_cell_borders_follow_floor(problem, by_grid_sample):
    # Levels of 4 and 2 cells and locations in eighths: both formulations compute positions without rounding.
    value, shapes, locations, weights = problem([(4, 4), (2, 2)], B=1, Q=200)
    locations = (locations * 8).round() / 8
    cotangent = torch.ones(1, 200, 6, dtype=torch.float64)
    inputs = value, shapes, locations, weights
    ours, theirs = gradients(ms_deform_attn, inputs, cotangent), gradients(by_grid_sample, inputs, cotangent)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-12, atol=1e-12)
    assert (theirs[1] != 0).any()


def test_gradcheck(problem):
    value, shapes, locations, weights = problem([(3, 4), (2, 1)], B=1, Q=3)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, at, w: ms_deform_attn(v, shapes, at, w), leaves)


@pytest.mark.parametrize("Q", [1, 4])
def test_opcheck(Q, problem):
    value, shapes, locations, weights = problem([(3, 4), (2, 2)], Q=Q, dtype=torch.float32)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    torch.library.opcheck(torch.ops.ms_deform_attn.forward, (leaves[0], shapes, *leaves[1:]))
    inputs = [tensor.detach() for tensor in leaves]
    arguments = (torch.randn(2, Q, 6), inputs[0], shapes, *inputs[1:])
    torch.library.opcheck(torch.ops.ms_deform_attn.backward, arguments)


def test_compiles_into_one_graph(problem):
    inputs = problem([(3, 4), (2, 2)], dtype=torch.float32)
    compiled = torch.compile(lambda *args: ms_deform_attn(*args) * 2, fullgraph=True, backend="aot_eager")
    cotangent = torch.randn(2, 5, 6)
    for q in (5, 3):  # the second length makes the compiler try symbolic sizes
        value, shapes, locations, weights = inputs
        part = value, shapes, locations[:, :q], weights[:, :q]
        ours = gradients(compiled, part, cotangent[:, :q])
        for our, eager in zip(ours, gradients(ms_deform_attn, part, cotangent[:, :q]), strict=True):
            torch.testing.assert_close(our, 2 * eager)


@pytest.mark.parametrize("empty", [{"B": 0}, {"Q": 0}, {"H": 0}, {"C": 0}, {"P": 0}, {"levels": []}], ids=str)
def test_empty_inputs(empty, problem):
    value, shapes, locations, weights = problem(**{"levels": [(3, 4)], **empty})
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    output = ms_deform_attn(value, shapes, locations, weights)
    assert output.shape == (value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    assert (output == 0).all()
    for leaf, grad in zip(leaves, torch.autograd.grad(output.sum(), leaves), strict=True):
        assert grad.shape == leaf.shape and (grad == 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_types(dtype, tolerance, problem):
    low = problem([(3, 4), (2, 2)], dtype=dtype, C=8)
    exact = [tensor if tensor.dtype == torch.int64 else tensor.double() for tensor in low]
    cotangent = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    output = ms_deform_attn(*low)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), ms_deform_attn(*exact), rtol=tolerance, atol=tolerance)
    ours, theirs = gradients(ms_deform_attn, low, cotangent), gradients(ms_deform_attn, exact, cotangent.double())
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == dtype
        torch.testing.assert_close(our.double(), their, rtol=10 * tolerance, atol=10 * tolerance)


def test_half_precision_value_meets_float32_locations(problem):
    value, shapes, locations, weights = problem([(3, 4)], dtype=torch.float32)
    mixed = value.bfloat16(), shapes, locations, weights
    grads = gradients(ms_deform_attn, mixed, torch.ones(2, 5, 6, dtype=torch.bfloat16))
    assert ms_deform_attn(*mixed).dtype == torch.bfloat16
    assert [grad.dtype for grad in grads] == [torch.bfloat16, torch.float32, torch.float32]
    expected = ms_deform_attn(value.bfloat16().float(), shapes, locations, weights).bfloat16()
    assert torch.equal(ms_deform_attn(*mixed), expected)


def test_any_strides(problem):
    value, shapes, locations, weights = inputs = problem([(3, 4), (2, 2)])
    strided = (
        value.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        shapes.t().contiguous().t(),
        locations.flip(1).movedim(-1, 0).contiguous().movedim(0, -1).flip(1),
        weights.movedim(-1, 0).contiguous().movedim(0, -1),
    )
    cotangent = torch.randn(2, 6, 5, dtype=torch.float64).transpose(1, 2)
    assert torch.equal(ms_deform_attn(*strided), ms_deform_attn(*inputs))
    for our, their in zip(
        gradients(ms_deform_attn, strided, cotangent), gradients(ms_deform_attn, inputs, cotangent), strict=True
    ):
        assert torch.equal(our, their)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
def test_wild_locations_touch_only_their_own_query(bad, problem):
    value, shapes, locations, weights = problem([(3, 4), (1, 1)], dtype=torch.float32)
    wild = locations.clone()
    wild[:, 2] = bad
    cotangent = torch.ones(2, 5, 6)
    output = ms_deform_attn(value, shapes, wild, weights)
    others = [0, 1, 3, 4]
    assert torch.equal(output[:, others], ms_deform_attn(value, shapes, locations, weights)[:, others])
    _, grad_locations, grad_weights = gradients(ms_deform_attn, (value, shapes, wild, weights), cotangent)
    assert grad_locations[:, others].isfinite().all() and grad_weights[:, others].isfinite().all()
    if bad == bad:
        assert (output[:, 2] == 0).all() and (grad_locations[:, 2] == 0).all() and (grad_weights[:, 2] == 0).all()
    else:
        assert output[:, 2].isnan().all()


def test_second_derivative_is_refused(problem):
    value, shapes, locations, weights = problem([(3, 4)])
    value.requires_grad_()
    (grad,) = torch.autograd.grad(ms_deform_attn(value, shapes, locations, weights).sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="ms_deform_attn has no second derivative"):
        grad.sum().backward()


def test_forward_mode_is_refused(problem):
    value, shapes, locations, weights = problem([(3, 4)])
    with pytest.raises(RuntimeError, match="ms_deform_attn has no forward-mode derivative"):
        torch.func.jvp(lambda value: ms_deform_attn(value, shapes, locations, weights), (value,), (value,))


def test_many_cotangents_at_once(problem):
    value, shapes, locations, weights = problem([(3, 4)])
    weights.requires_grad_()
    output = ms_deform_attn(value, shapes, locations, weights)
    cotangents = torch.randn(3, *output.shape, dtype=output.dtype)
    (batched,) = torch.autograd.grad(output, weights, cotangents, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(output, weights, cotangent, retain_graph=True)[0] for cotangent in cotangents]
    torch.testing.assert_close(batched, torch.stack(single))


def test_a_mode_sees_and_may_change_the_call(problem):
    value, shapes, locations, weights = problem([(3, 4)])
    seen = []

    class Mute(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is ms_deform_attn:
                seen.append(args)
                args = (*args[:3], torch.zeros_like(args[3]))
            return function(*args, **(kwargs or {}))

    with Mute():
        assert (ms_deform_attn(value, shapes, sampling_locations=locations, attention_weights=weights) == 0).all()
    assert len(seen) == 1 and all(a is b for a, b in zip(seen[0], (value, shapes, locations, weights), strict=True))
    assert (ms_deform_attn(value, shapes, locations, weights) != 0).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": torch.tensor([[3, 5]])}, r"shapes \(\(3, 5\),\) have 15 cells, expected the 12 tokens of value"),
        (
            {"value": torch.zeros(2, 12, 2, 3, dtype=torch.int32)},
            r"value has dtype torch.int32, expected one of torch.f",
        ),
        (
            {"locations": torch.zeros(2, 5, 2, 1, 2, 2, device="meta")},
            r"sampling_locations is torch.float32 on meta, expected one of value's types on cpu",
        ),
        ({"weights": torch.ones(2, 5, 2, 1, 2, dtype=torch.int64)}, r"attention_weights is torch.int64 on cpu"),
        ({"shapes": torch.tensor([[-3, -4]])}, r"at least one row and one column"),
        ({"shapes": torch.tensor([3, 4])}, r"shapes has shape \(2,\), expected \(L, 2\)"),
        ({"shapes": torch.tensor([[3, 4]], dtype=torch.int32)}, r"dtype torch.int32, expected torch.int64"),
        ({"value": torch.zeros(2, 12, 6)}, r"value has shape \(2, 12, 6\), expected four dimensions"),
        ({"value": torch.zeros(2, 12, 4, 3)}, r"sampling_locations has shape \(2, 5, 2, 1, 2, 2\), expected .* H=4"),
        ({"locations": torch.zeros(2, 5, 2, 1, 2, 3)}, r"expected six dimensions \(B, Q, H, L, P, 2\)"),
        (
            {"weights": torch.zeros(2, 5, 2, 2)},
            r"attention_weights has shape \(2, 5, 2, 2\), expected \(2, 5, 2, 1, 2\)",
        ),
    ],
)
def test_errors_quote_what_was_given(change, message, problem):
    names = ("value", "shapes", "locations", "weights")
    inputs = dict(zip(names, problem([(3, 4)], dtype=torch.float32), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*(inputs[name] for name in names))


def test_a_kernel_registered_for_a_device_takes_over(problem):
    """The seam for compiled kernels: a registration for CPU is called instead of ours, by name and with autograd."""
    inputs = problem([(3, 4)], dtype=torch.float32)
    library = torch.library.Library("ms_deform_attn", "IMPL")
    calls = []

    def kernel(value, shapes, locations, weights):
        calls.append(value.shape)
        return value.new_ones(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])

    try:
        library.impl("forward", kernel, "CPU")
        assert (ms_deform_attn(*inputs) == 1).all()
        assert gradients(ms_deform_attn, inputs, torch.ones(2, 5, 6))[0].shape == inputs[0].shape
    finally:
        library._destroy()
    assert len(calls) == 2 and (ms_deform_attn(*inputs) != 1).all()


@pytest.mark.parametrize("Q", [3, 60])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("needs_reference", [False, True])
def test_fused_equals_the_arithmetic_in_front_of_the_operator(Q, size, needs_reference, problem):
    value, shapes, offsets, logits = problem([(5, 7), (3, 2), (1, 1)], Q=Q, spread=(-3, 3))
    generator = torch.Generator().manual_seed(6)
    points = torch.rand(2, Q, 3, size, generator=generator, dtype=torch.float64)
    logits = logits * 40 - 20
    cotangent = torch.randn(2, Q, 6, generator=generator, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (value, offsets, logits)]
    if needs_reference:
        leaves.append(points.requires_grad_())
    fused = ms_deform_attn_fused(value, shapes, points, offsets, logits)
    explicit = ms_deform_attn(value, shapes, sampling_locations(points, offsets, shapes), attention_weights(logits))
    torch.testing.assert_close(fused, explicit, rtol=1e-11, atol=1e-12)
    ours, theirs = (torch.autograd.grad(output, leaves, cotangent) for output in (fused, explicit))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-11)


def test_fused_softmax_neither_overflows_nor_underflows(problem):
    value, shapes, offsets, _ = problem([(5, 7)], P=4, dtype=torch.float32)
    logits = torch.tensor([3e38, -3e38, 3e38, 88.0]).expand(2, 5, 2, 1, 4)
    points = torch.full((2, 5, 1, 2), 0.5)
    expected = ms_deform_attn(value, shapes, sampling_locations(points, offsets, shapes), logits.softmax(-1))
    torch.testing.assert_close(ms_deform_attn_fused(value, shapes, points, offsets, logits), expected)
    logits = torch.tensor([0.0, -torch.inf, -90.0, -1e30]).expand(2, 5, 2, 1, 4)
    expected = ms_deform_attn(value, shapes, sampling_locations(points, offsets, shapes), logits.softmax(-1))
    torch.testing.assert_close(ms_deform_attn_fused(value, shapes, points, offsets, logits), expected)
    assert ms_deform_attn_fused(value, shapes, points, offsets, logits * torch.nan).isnan().all()


def test_fused_errors_quote_what_was_given(problem):
    value, shapes, offsets, logits = problem([(3, 4)])
    with pytest.raises(
        ValueError, match=r"reference_points has shape \(2, 5, 1, 3\) on cpu, expected \(2, 5, 1, 2\) points"
    ):
        ms_deform_attn_fused(value, shapes, torch.zeros(2, 5, 1, 3), offsets, logits)
    with pytest.raises(ValueError, match=r"sampling_offsets has shape \(2, 5, 2, 1, 2\), expected six dimensions"):
        ms_deform_attn_fused(value, shapes, torch.zeros(2, 5, 1, 2), offsets[..., 0], logits)
    with pytest.raises(ValueError, match=r"attention_logits has shape \(2, 5, 2, 2\), expected \(2, 5, 2, 1, 2\)"):
        ms_deform_attn_fused(value, shapes, torch.zeros(2, 5, 1, 2), offsets, logits[:, :, :, 0])


@pytest.mark.parametrize("threads", [2, 3, 5, 16])
def test_threads_do_not_change_a_bit(threads, problem, path):
    """Fewer and more threads than heads of images, few and many points."""
    if path == "grid_sample":
        pytest.skip("torch's grid_sample makes no such promise")
    before = torch.get_num_threads()
    for Q in (4, 300):
        inputs = problem([(16, 16), (8, 8), (1, 3)], Q=Q, H=3, C=8, P=4, dtype=torch.float32)
        cotangent = torch.randn(2, Q, 24, generator=torch.Generator().manual_seed(5))
        results = []
        try:
            for count in (1, threads):
                torch.set_num_threads(count)
                results.append([ms_deform_attn(*inputs), *gradients(ms_deform_attn, inputs, cotangent)])
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(alone, together) for alone, together in zip(*results, strict=True))


@pytest.mark.parametrize("Q", [3, 60])
def test_value_may_lie_anywhere_in_memory(Q, problem):
    value, shapes, locations, weights = problem([(3, 4)], Q=Q)
    raw = bytearray(value.numel() * 8 + 4)
    askew = torch.frombuffer(raw, dtype=torch.float64, offset=4).view(value.shape)
    askew.copy_(value)
    cotangent = torch.ones(2, Q, 6, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (askew, value)]
    ours, theirs = (ms_deform_attn(leaf, shapes, locations, weights) for leaf in leaves)
    assert torch.equal(ours, theirs)
    both = zip((ours, theirs), leaves, strict=True)
    assert torch.equal(*(torch.autograd.grad(output, leaf, cotangent)[0] for output, leaf in both))


def test_infinite_offsets_from_boxes_are_outside(problem):
    value, shapes, offsets, logits = problem([(3, 4)], spread=(-1, 1))
    offsets[:, 0] = torch.inf
    boxes = torch.rand(2, 5, 1, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64).requires_grad_()
    output = ms_deform_attn_fused(value, shapes, boxes, offsets, logits)
    (grad,) = torch.autograd.grad(output.sum(), boxes)
    assert (output[:, 0] == 0).all() and (grad[:, 0] == 0).all() and grad.isfinite().all() and (grad[:, 1:] != 0).any()


@pytest.mark.parametrize("Q", [3, 60])
def test_a_location_that_is_no_number_spoils_no_cell(Q, problem):
    value, shapes, locations, weights = problem([(3, 4)], Q=Q, dtype=torch.float32)
    locations[0, 1, 0, 0, 0, 0] = torch.nan
    cotangent = torch.ones(2, Q, 6)
    cotangent[1, 2] = torch.inf
    locations[1, 2] = 40.0
    assert gradients(ms_deform_attn, (value, shapes, locations, weights), cotangent)[0].isfinite().all()
