"""Packed maps give the numbers of F.linear, and exist only where nobody asks for gradients."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from lightning_xai.nets.packed_linear import linear_map

PACKS = torch.backends.mkldnn.is_available()


@pytest.mark.parametrize("rows", [(0,), (1,), (7,), (2, 3)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_numbers(rows, bias):
    layer, values = torch.nn.Linear(33, 70, bias), torch.randn(*rows, 33)
    with torch.no_grad():
        weight = torch.cat([torch.randn(70, 2), layer.weight], 1)[:, 2:]  # not contiguous
        packed = linear_map(weight, layer.bias)
        assert isinstance(packed, partial) is not PACKS
        torch.testing.assert_close(packed(values), layer(values), rtol=1e-5, atol=1e-5)


def test_not_packed_where_that_would_be_wrong():
    layer = torch.nn.Linear(3, 4)
    assert isinstance(linear_map(layer.weight), partial)  # gradients
    with torch.no_grad():
        assert isinstance(linear_map(layer.weight.double()), partial)
        with torch.autocast("cpu", torch.bfloat16):
            assert isinstance(linear_map(layer.weight), partial)
        with torch.backends.mkldnn.flags(enabled=False):
            assert isinstance(linear_map(layer.weight), partial)


def test_weights_are_those_of_the_moment():
    layer, values = torch.nn.Linear(3, 4), torch.randn(2, 3)
    with torch.no_grad():
        before = linear_map(layer.weight, layer.bias)(values)
        layer.weight.add_(1)
        after = linear_map(layer.weight, layer.bias)(values)
    torch.testing.assert_close(after - before, values.sum(1, keepdim=True).expand(2, 4))
    torch.testing.assert_close(linear_map(layer.weight)(values), F.linear(values, layer.weight))
