"""LARS against numbers computed by hand and, where they agree by definition, against timm's."""

import math

import pytest
import torch
from timm.optim import Lars

from lightning_xai.tasks.lars import LARS


def step(optimizer, parameter, gradient):
    parameter.grad = torch.tensor(gradient)
    optimizer.step()
    return parameter.detach().clone()


def test_a_matrix_moves_by_a_share_of_its_length():
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = LARS([weight], lr=2.0, momentum=0.5, trust_coefficient=0.1)
    # |p| = 5, |g| = 1: the step is 0.1 * 5 * g = (0.3, 0.4), times the rate
    torch.testing.assert_close(step(optimizer, weight, [[0.6, 0.8]]), torch.tensor([[2.4, 3.2]]))
    # |p| = 4, |g| = 2, g = (0, 2): m = 0.5 * (0.3, 0.4) + 0.1 * 4 / 2 * (0, 2)
    torch.testing.assert_close(step(optimizer, weight, [[0.0, 2.0]]), torch.tensor([[2.4 - 0.3, 3.2 - 1.2]]))


def test_decay_is_part_of_the_gradient_whose_length_is_taken():
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = LARS([weight], lr=1.0, weight_decay=0.5, trust_coefficient=0.1)
    g = torch.tensor([1.5, 1.0])  # (0, -1) + 0.5 * (3, 4)
    expected = torch.tensor([[3.0, 4.0]]) - 0.1 * 5 / math.hypot(1.5, 1.0) * g
    torch.testing.assert_close(step(optimizer, weight, [[0.0, -1.0]]), expected)


def test_vectors_are_plain_momentum():
    bias = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = LARS([bias], lr=0.1, weight_decay=0.5, momentum=0.9)
    torch.testing.assert_close(step(optimizer, bias, [1.0, 0.0]), torch.tensor([0.9, 2.0]))
    torch.testing.assert_close(step(optimizer, bias, [1.0, 0.0]), torch.tensor([0.9 - 0.19, 2.0]))


@pytest.mark.parametrize("weight, gradient", [([[0.0, 0.0]], [[1.0, 2.0]]), ([[1.0, 2.0]], [[0.0, 0.0]])])
def test_a_norm_of_zero_changes_nothing(weight, gradient):
    parameter = torch.nn.Parameter(torch.tensor(weight))
    moved = step(LARS([parameter], lr=0.1), parameter, gradient)
    torch.testing.assert_close(moved, torch.tensor(weight) - 0.1 * torch.tensor(gradient))


def test_without_decay_it_is_timms():
    torch.manual_seed(0)
    start, gradients = torch.randn(5, 3), torch.randn(4, 5, 3)
    ends = []
    for make in (LARS, Lars):
        weight = torch.nn.Parameter(start.clone())
        options = {} if make is LARS else {"always_adapt": True}
        optimizer = make([weight], lr=0.3, momentum=0.9, **options)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"lr": 1.0, "momentum": 1.0}, {"lr": 1.0, "weight_decay": -0.1}])
def test_numbers_out_of_range(options):
    with pytest.raises(ValueError, match="must be"):
        LARS([torch.nn.Parameter(torch.ones(2))], **options)
