"""What torch expects of an operator, of every path on every device that is here: checks, transforms, compilers."""

import copy
import io
import pickle

import pytest
import torch
from ms_deform_attn import (
    MSDeformAttn,
    attention_weights,
    ms_deform_attn,
    ms_deform_attn_fused,
    sampling_locations,
    use_path,
)
from ms_deform_attn.paths import available_paths
from torch._dynamo.testing import CompileCounterWithBackend

LEVELS = [(3, 4), (2, 2)]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PLACES = [(name, device) for device in DEVICES for name in available_paths(torch.device(device))]
ALL_UTILITIES = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
    "test_aot_dispatch_dynamic",
)
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


def by_parts(value, shapes, reference, offsets, logits):
    """The fused entry out of its parts."""
    return ms_deform_attn(value, shapes, sampling_locations(reference, offsets, shapes), attention_weights(logits))


def leaves_of(arguments):
    return [t.detach().requires_grad_() if t.is_floating_point() else t for t in arguments]


def gradients(attend, arguments, cotangent):
    leaves = leaves_of(arguments)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return torch.autograd.grad(attend(*leaves), wanted, cotangent)


def assert_close(ours, theirs, dtype=torch.float64):
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, **CLOSE[dtype])


# --- torch.library.opcheck


@pytest.mark.parametrize("Q", [1, 4])
def test_opcheck_of_the_operator(Q, inputs):
    arguments = inputs(Q=Q, dtype=torch.float32)
    torch.library.opcheck(torch.ops.ms_deform_attn.forward, tuple(leaves_of(arguments)), test_utils=ALL_UTILITIES)
    cotangent = torch.randn(2, Q, 6).to(arguments[0])
    torch.library.opcheck(torch.ops.ms_deform_attn.backward, (cotangent, *arguments), test_utils=ALL_UTILITIES)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_opcheck_of_the_fused_operator(coordinates, fused_inputs):
    arguments = fused_inputs(coordinates, dtype=torch.float32)
    operators = torch.ops.ms_deform_attn
    torch.library.opcheck(operators.fused_forward, tuple(leaves_of(arguments)), test_utils=ALL_UTILITIES)
    constant_reference = [t.detach() if i == 2 else t for i, t in enumerate(leaves_of(arguments))]
    torch.library.opcheck(operators.fused_forward, tuple(constant_reference), test_utils=ALL_UTILITIES)
    cotangent = torch.randn(2, 5, 6).to(arguments[0])
    for needs_reference in (False, True):
        torch.library.opcheck(
            operators.fused_backward, (cotangent, *arguments, needs_reference), test_utils=ALL_UTILITIES
        )


@pytest.mark.parametrize("coordinates", [2, 4])
def test_gradcheck_of_the_fused_operator(coordinates, fused_inputs):
    arguments = leaves_of(fused_inputs(coordinates, B=1, Q=2, levels=[(3, 4), (2, 1)]))
    assert torch.autograd.gradcheck(ms_deform_attn_fused, arguments)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_fused_is_its_parts(coordinates, fused_inputs):
    arguments = fused_inputs(coordinates, B=3, Q=9, P=3, H=3)
    cotangent = torch.randn(3, 9, 9, dtype=torch.float64).to(arguments[0])
    torch.testing.assert_close(ms_deform_attn_fused(*arguments), by_parts(*arguments), rtol=1e-10, atol=1e-10)
    assert_close(gradients(ms_deform_attn_fused, arguments, cotangent), gradients(by_parts, arguments, cotangent))


def test_constant_references_get_no_gradient(fused_inputs):
    value, shapes, reference, offsets, logits = leaves_of(fused_inputs(4))
    output = ms_deform_attn_fused(value, shapes, reference.detach(), offsets, logits)
    cotangent = torch.ones_like(output)
    grads = torch.autograd.grad(output, (value, offsets, logits), cotangent)
    every = gradients(by_parts, (value, shapes, reference, offsets, logits), cotangent)
    assert_close(grads, (every[0], *every[2:]))


# --- vmap


def mapped(arguments, in_dims, size=3):
    """The arguments with a dimension of `size` different copies where in_dims says."""
    several = []
    for argument, dim in zip(arguments, in_dims, strict=True):
        copies = [argument * (1 + 0.1 * i) if argument.is_floating_point() else argument for i in range(size)]
        several.append(argument if dim is None else torch.stack(copies, dim))
    return several


def one_by_one(function, arguments, in_dims, size=3):
    """What vmap means."""
    results = [
        function(*(a if dim is None else a.select(dim, i) for a, dim in zip(arguments, in_dims, strict=True)))
        for i in range(size)
    ]
    if isinstance(results[0], torch.Tensor):
        return torch.stack(results)
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


PLAIN_DIMS = [(0, None, 0, 0), (0, None, None, None), (None, None, 2, None), (None, None, None, 5), (4, None, -1, 1)]


@pytest.mark.parametrize("in_dims", PLAIN_DIMS)
def test_vmap(in_dims, inputs):
    arguments = mapped(inputs(), in_dims)
    ours = torch.vmap(ms_deform_attn, in_dims)(*arguments)
    torch.testing.assert_close(ours, one_by_one(ms_deform_attn, arguments, in_dims), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("in_dims", [(0, None, 0, 0, 0), (None, None, 2, None, None), (1, None, None, 6, -1)])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_vmap_of_the_fused_entry(in_dims, coordinates, fused_inputs):
    arguments = mapped(fused_inputs(coordinates), in_dims)
    ours = torch.vmap(ms_deform_attn_fused, in_dims)(*arguments)
    torch.testing.assert_close(ours, one_by_one(ms_deform_attn_fused, arguments, in_dims), rtol=1e-12, atol=1e-12)


def test_vmap_in_vmap(inputs):
    value, shapes, locations, weights = inputs()
    values, several = torch.stack([value, 2 * value]), torch.stack([weights, weights + 1, 3 * weights], 3)

    def over_weights(value):
        return torch.vmap(ms_deform_attn, (None, None, None, 3))(value, shapes, locations, several)

    ours = torch.vmap(over_weights)(values)
    theirs = torch.stack(
        [torch.stack([ms_deform_attn(v, shapes, locations, w) for w in several.unbind(3)]) for v in values]
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("vectorize", [False, True])
def test_jacobian(vectorize, inputs, by_grid_sample):
    value, shapes, locations, weights = inputs(B=1, Q=2)
    jacobian, expected = (
        torch.autograd.functional.jacobian(
            lambda v, at, w, attend=attend: attend(v, shapes, at, w), (value, locations, weights), vectorize=vectorize
        )
        for attend in (ms_deform_attn, by_grid_sample)
    )
    assert_close(jacobian, expected)


def test_many_cotangents_at_once(fused_inputs):
    leaves = leaves_of(fused_inputs())
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    output = ms_deform_attn_fused(*leaves)
    cotangents = torch.randn(3, *output.shape).to(output)
    batched = torch.autograd.grad(output, wanted, cotangents, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(output, wanted, cotangent, retain_graph=True) for cotangent in cotangents]
    assert_close(batched, [torch.stack(parts) for parts in zip(*single, strict=True)])


def test_shapes_cannot_be_mapped(inputs):
    value, shapes, locations, weights = inputs()
    with pytest.raises(ValueError, match="vmap maps dimension 0 of shapes"):
        torch.vmap(ms_deform_attn, (None, 0, None, None))(value, torch.stack([shapes, shapes]), locations, weights)


# --- autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_value_alone(dtype, device, inputs):
    value, shapes, locations, weights = inputs(dtype=torch.float32, C=8)
    value.requires_grad_()
    with torch.autocast(device, dtype):
        output = ms_deform_attn(value, shapes, locations, weights)
        exact = ms_deform_attn(value.double(), shapes, locations, weights)
    assert torch.equal(output, ms_deform_attn(value.to(dtype), shapes, locations, weights))
    assert output.dtype == dtype and exact.dtype == torch.float64
    (grad,) = torch.autograd.grad(output.float().sum(), value)
    (expected,) = torch.autograd.grad(ms_deform_attn(value, shapes, locations, weights).sum(), value)
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad, expected, **CLOSE[dtype])


def test_autocast_of_the_fused_entry(device, fused_inputs):
    arguments = fused_inputs(dtype=torch.float32)
    with torch.autocast(device, torch.bfloat16):
        output = ms_deform_attn_fused(*arguments)
    assert torch.equal(output, ms_deform_attn_fused(arguments[0].bfloat16(), *arguments[1:]))


# --- the module, compilers, export, copies


@pytest.fixture
def attention(device):
    torch.manual_seed(0)
    module = MSDeformAttn(d_model=16, n_levels=2, n_heads=2, n_points=3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.to(device)


def module_inputs(device, B=2, Q=5, levels=LEVELS):
    generator = torch.Generator().manual_seed(B + Q)
    S = sum(h * w for h, w in levels)
    tensors = torch.randn(B, Q, 16, generator=generator), torch.rand(B, Q, len(levels), 2, generator=generator)
    value = torch.randn(B, S, 16, generator=generator)
    return *(t.to(device) for t in (*tensors, value)), torch.tensor(levels)


def test_module_under_autocast(device, attention):
    arguments = module_inputs(device)
    with torch.autocast(device, torch.bfloat16):
        output = attention(*arguments)
    assert output.dtype == torch.bfloat16
    # Offsets come out of a linear layer in bfloat16: locations are off by about a hundredth of a cell.
    torch.testing.assert_close(output.float(), attention(*arguments), rtol=0.2, atol=0.2)
    output.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in attention.parameters())


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("fused", [False, True])
def test_compiles_into_one_graph(dynamic, fused, inputs, fused_inputs):
    """Forward and backward; with symbolic sizes one compilation serves other batches, queries and pyramids."""
    torch._dynamo.reset()
    attend, make = (ms_deform_attn_fused, fused_inputs) if fused else (ms_deform_attn, inputs)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *args: attend(*args) * 2, fullgraph=True, dynamic=dynamic, backend=counter)
    # Different numbers in all dimensions: torch takes sizes that are equal at first for equal ever after.
    for sizes in ({"B": 4, "Q": 5}, {"B": 3, "Q": 8}, {"B": 6, "Q": 9, "levels": [(5, 3), (4, 2)]}):
        arguments = make(dtype=torch.float32, H=7, C=10, P=11, **sizes)
        cotangent = torch.randn(sizes["B"], sizes["Q"], 70).to(arguments[0])
        ours = gradients(compiled, arguments, cotangent)
        assert_close(ours, [2 * g for g in gradients(attend, arguments, cotangent)], torch.float32)
    if dynamic:
        assert counter.frame_count == 1
    torch._dynamo.reset()


def test_module_compiles_into_one_graph(device, attention):
    torch._dynamo.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    arguments = module_inputs(device)
    for module in (compiled, attention):
        module(*arguments).sum().backward()
    ours = [p.grad.clone() / 2 for p in attention.parameters()]
    attention.zero_grad()
    attention(*arguments).sum().backward()
    assert_close(ours, [p.grad for p in attention.parameters()], torch.float32)
    torch._dynamo.reset()


def test_export(device, attention):
    """One exported program, saved and read, serves another batch, other queries and another pyramid."""
    B, Q, S = (torch.export.Dim(name, min=2, max=200) for name in ("B", "Q", "S"))
    dynamic = ({0: B, 1: Q}, {0: B, 1: Q}, {0: B, 1: S}, None)
    program = torch.export.export(attention, module_inputs(device), dynamic_shapes=dynamic)
    called = {str(node.target) for node in program.graph.nodes if "ms_deform_attn" in str(node.target)}
    assert called and called <= {"ms_deform_attn.forward.default", "ms_deform_attn.fused_forward.default"}
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    arguments = module_inputs(device, B=3, Q=8, levels=[(5, 3), (4, 4)])
    torch.testing.assert_close(again(*arguments), attention(*arguments))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_of_the_module(duplicate, device, attention):
    arguments = module_inputs(device)
    twin = duplicate(attention)
    assert torch.equal(twin(*arguments), attention(*arguments))
    twin(*arguments).sum().backward()
    assert all(p.grad is None for p in attention.parameters())
