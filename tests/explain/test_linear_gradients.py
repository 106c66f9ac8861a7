"""Linear maps that pass their gradient to their input alone: the same numbers, whatever library multiplies."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_xai.explain.linear_gradients import LEAST_ROWS, linear_maps_of_inputs


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40), nn.GELU(), nn.Linear(40, 7, bias=False))


@pytest.mark.parametrize("rows", [3, LEAST_ROWS + 5], ids=["few rows", "many rows"])
def test_output_and_gradient(layers, rows):
    x = torch.randn(2, rows, 12, requires_grad=True)
    plain = layers(x)
    with linear_maps_of_inputs():
        output = layers(x)
    assert torch.equal(output, plain)
    start = torch.randn_like(plain)
    (expected,) = torch.autograd.grad(plain, x, start)
    (found,) = torch.autograd.grad(output, x, start, retain_graph=True)
    torch.testing.assert_close(found, expected)
    # several cotangents in one vectorised pass, as several targets are
    starts = torch.stack([start, 2 * start, -start])
    (together,) = torch.autograd.grad(output, x, starts, is_grads_batched=True)
    torch.testing.assert_close(together, torch.stack([expected, 2 * expected, -expected]), rtol=1e-5, atol=1e-6)


def test_weights_have_no_part_in_the_graph(layers):
    x = torch.randn(100, 12, requires_grad=True)
    with linear_maps_of_inputs():
        output = layers(x)
    assert torch.autograd.grad(output.sum(), layers[0].weight, allow_unused=True) == (None,)


@pytest.mark.parametrize("case", ["double", "autocast", "no input gradient", "switched off"])
def test_what_is_left_alone(layers, case):
    """Where it does not apply the graph is torch's own, weights included."""
    layers = layers.double() if case == "double" else layers
    x = torch.randn(100, 12, dtype=layers[0].weight.dtype, requires_grad=case != "no input gradient")
    library = torch.backends.mkldnn.flags(enabled=case != "switched off")
    with torch.autocast("cpu", enabled=case == "autocast"), library, linear_maps_of_inputs():
        output = F.linear(x, layers[0].weight, layers[0].bias)
    assert torch.autograd.grad(output.sum(), layers[0].weight)[0] is not None


def test_nothing_stays_behind(layers):
    with linear_maps_of_inputs():
        pass
    output = layers(torch.randn(100, 12, requires_grad=True))
    assert torch.autograd.grad(output.sum(), layers[0].weight)[0] is not None
