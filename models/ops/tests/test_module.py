import math
import subprocess
import sys

import pytest
import torch
from ms_deform_attn import MSDeformAttn, dense_attention, ms_deform_attn_fused, sampling_locations
from torch import nn
from torch.overrides import TorchFunctionMode

SHAPES = torch.tensor([(4, 6), (2, 3)])
S = 30


@pytest.fixture
def attention():
    torch.manual_seed(0)
    module = MSDeformAttn(d_model=24, n_levels=2, n_heads=4, n_points=3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def inputs(reference_size, Q=5):
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, Q, 24, generator=generator, dtype=torch.float64)
    reference = torch.rand(2, Q, 2, reference_size, generator=generator, dtype=torch.float64)
    return query, reference, torch.randn(2, S, 24, generator=generator, dtype=torch.float64)


def test_parameters_are_those_of_the_original():
    shapes = {name: tuple(parameter.shape) for name, parameter in MSDeformAttn().named_parameters()}
    assert shapes == {
        "sampling_offsets.weight": (256, 256),
        "sampling_offsets.bias": (256,),
        "attention_weights.weight": (128, 256),
        "attention_weights.bias": (128,),
        "value_proj.weight": (256, 256),
        "value_proj.bias": (256,),
        "output_proj.weight": (256, 256),
        "output_proj.bias": (256,),
    }


def test_initial_values():
    module = MSDeformAttn(d_model=32, n_levels=3, n_heads=8, n_points=2)
    bias = module.sampling_offsets.bias.view(8, 3, 2, 2)
    eight_directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, direction in enumerate(eight_directions):
        for point in (1, 2):
            expected = torch.tensor(direction, dtype=torch.float32).expand(3, 2) * point
            torch.testing.assert_close(bias[head, :, point - 1], expected)
    assert not any(p.any() for p in (module.sampling_offsets.weight, *module.attention_weights.parameters()))
    bound = math.sqrt(6 / 64)
    for projection in (module.value_proj, module.output_proj):
        assert not projection.bias.any()
        assert 0.9 * bound < projection.weight.abs().max() <= bound


@pytest.mark.parametrize("reference_size", [2, 4])
def test_forward_equals_its_equation(reference_size, attention):
    query, reference, value_input = inputs(reference_size)
    mask = torch.zeros(2, S, dtype=torch.bool)
    mask[1, 20:] = True
    output = attention(query, reference, value_input, SHAPES, mask)

    offsets = attention.sampling_offsets(query).view(2, 5, 4, 2, 3, 2)
    weights = torch.exp(attention.attention_weights(query).view(2, 5, 4, 6))
    weights = (weights / weights.sum(-1, keepdim=True)).view(2, 5, 4, 2, 3)
    locations = torch.empty_like(offsets)
    for level, (h, w) in enumerate(SHAPES.tolist()):
        for point in range(3):
            centre = reference[:, :, None, level, :2]
            if reference_size == 2:
                step = offsets[:, :, :, level, point] / torch.tensor([w, h])
            else:
                step = offsets[:, :, :, level, point] / 3 * reference[:, :, None, level, 2:] / 2
            locations[:, :, :, level, point] = centre + step
    value = attention.value_proj(value_input)
    value = torch.where(mask[..., None], 0, value).view(2, S, 4, 6)
    dense = dense_attention(SHAPES, locations, weights)
    expected = attention.output_proj(torch.einsum("bhqs,bshc->bqhc", dense, value).flatten(2))
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sampling_locations(reference, offsets, SHAPES), locations)


@pytest.mark.parametrize("points", [3, 8])  # 6 and 16 weights a head: softmax through either dimension
def test_gradients(points):
    torch.manual_seed(2)
    module = MSDeformAttn(d_model=8, n_levels=2, n_heads=2, n_points=points).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    query = torch.randn(1, 2, 8, dtype=torch.float64, requires_grad=True)
    reference = torch.rand(1, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    value_input = torch.randn(1, S, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(1, S, dtype=torch.bool)
    mask[:, ::7] = True
    assert torch.autograd.gradcheck(lambda *args: module(*args, SHAPES, mask), (query, reference, value_input))


def test_padded_tokens_are_never_read(attention):
    query, reference, value_input = inputs(2)
    mask = torch.zeros(2, S, dtype=torch.bool)
    mask[:, 10:] = True
    clean = attention(query, reference, value_input, SHAPES, mask)
    value_input[:, 10:] = torch.nan
    assert torch.equal(attention(query, reference, value_input, SHAPES, mask), clean)


def test_a_mode_sees_the_operator_inside_the_module(attention):
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is ms_deform_attn_fused:
                seen.append([tuple(arg.shape) for arg in args])
            return function(*args, **(kwargs or {}))

    with Watch():
        attention(*inputs(2), SHAPES)
    assert seen == [[(2, S, 4, 6), (2, 2), (2, 5, 2, 2), (2, 5, 4, 2, 3, 2), (2, 5, 4, 2, 3)]]


def test_compiles_into_one_graph(attention):
    query, reference, value_input = inputs(4)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    mask = torch.zeros(2, S, dtype=torch.bool)
    eager = attention(query, reference, value_input, SHAPES, mask)
    torch.testing.assert_close(compiled(query, reference, value_input, SHAPES, mask), eager)
    compiled(query, reference, value_input, SHAPES, mask).sum().backward()
    assert attention.sampling_offsets.weight.grad.abs().sum() > 0


def test_autocast(attention):
    module = attention.float()
    query, reference, value_input = (tensor.float() for tensor in inputs(2))
    exact = module(query, reference, value_input, SHAPES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(query, reference, value_input, SHAPES)
    assert output.dtype == torch.bfloat16
    assert (output.float() - exact).norm() < 0.1 * exact.norm()


def test_errors_quote_what_was_given():
    with pytest.raises(ValueError, match="d_model=30 is not divisible by n_heads=8"):
        MSDeformAttn(d_model=30)
    with pytest.raises(ValueError, match=r"reference_points has shape \(1, 2, 1, 3\), expected"):
        sampling_locations(torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 1, 1, 2), torch.tensor([[2, 2]]))


def test_package_needs_torch_alone():
    code = "import sys, ms_deform_attn; print({'lightning_xai', 'torchvision', 'transformers'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
