import pytest
import torch
from ms_deform_attn import dense_attention, ms_deform_attn


@pytest.mark.parametrize("seed", range(4))
def test_times_value_is_the_operator(seed, problem):
    generator = torch.Generator().manual_seed(seed)
    levels = [tuple(pair) for pair in torch.randint(1, 6, (seed + 1, 2), generator=generator).tolist()]
    value, shapes, locations, weights = problem(levels, seed=seed)
    locations[:, 1] = (locations[:, 1] * 2).round() / 2  # on borders of the map and on cell borders
    dense = dense_attention(shapes, locations, weights)
    assert dense.shape == (2, 2, 5, value.shape[1])
    expected = torch.einsum("bhqs,bshc->bqhc", dense, value).flatten(2)
    torch.testing.assert_close(ms_deform_attn(value, shapes, locations, weights), expected, rtol=1e-12, atol=1e-12)


def test_rows_sum_to_the_weights_inside_the_map(problem):
    _, shapes, locations, weights = problem([(4, 4), (8, 8)], spread=(0.13, 0.87))
    torch.testing.assert_close(
        dense_attention(shapes, locations, weights).sum(-1), weights.sum((-1, -2)).transpose(1, 2)
    )
    assert (dense_attention(shapes, locations + 9, weights) == 0).all()


def test_gradients_are_those_of_the_operator(problem):
    value, shapes, locations, weights = problem([(4, 5)])
    leaves = [locations.requires_grad_(), weights.requires_grad_()]
    dense = torch.einsum("bhqs,bshc->bqhc", dense_attention(shapes, *leaves), value).sum()
    ours = torch.autograd.grad(ms_deform_attn(value, shapes, *leaves).sum(), leaves)
    for our, their in zip(ours, torch.autograd.grad(dense, leaves), strict=True):
        torch.testing.assert_close(our, their)


def test_other_number_of_levels_is_refused(problem):
    _, shapes, locations, weights = problem([(4, 5)])
    with pytest.raises(ValueError, match=r"sampling_locations has 1 levels, expected the 2 of shapes"):
        dense_attention(shapes.repeat(2, 1), locations, weights)
