import torch
from ms_deform_attn import grid_sample


def test_equals_torch_and_its_gradients(problem, by_grid_sample):
    value, shapes, locations, weights = problem([(4, 5), (2, 3), (1, 1)])
    levels = tuple(map(tuple, shapes.tolist()))
    leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
    cotangent = torch.randn(2, 6, 5, dtype=torch.float64).transpose(1, 2)
    expected = by_grid_sample(leaves[0], shapes, *leaves[1:])
    torch.testing.assert_close(grid_sample.forward(value, levels, locations, weights), expected.detach())
    ours = grid_sample.backward(cotangent, value, levels, locations, weights)
    for our, their in zip(ours, torch.autograd.grad(expected, leaves, cotangent), strict=True):
        torch.testing.assert_close(our, their)
