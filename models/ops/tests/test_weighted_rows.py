import pytest
import torch
from ms_deform_attn import grid_sample, weighted_rows

LEVELS = ((6, 5), (3, 4), (1, 2))


def results(formulation, inputs, cotangent):
    value, shapes, locations, weights = inputs
    levels = tuple(map(tuple, shapes.tolist()))
    output = formulation.forward(value, levels, locations, weights)
    return [output, *formulation.backward(cotangent, value, levels, locations, weights)]


@pytest.mark.parametrize("chunk", [4, 60, 1 << 15])
@pytest.mark.parametrize("Q", [2, 70])
def test_parts_of_any_size_give_the_same(chunk, Q, problem, monkeypatch):
    """Parts smaller than an image, of several images, of all images; fewer and more points than rows."""
    monkeypatch.setattr(weighted_rows, "CHUNK", chunk)
    inputs = problem(LEVELS, B=3, Q=Q)
    cotangent = torch.randn(3, Q, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for ours, theirs in zip(
        results(weighted_rows, inputs, cotangent), results(grid_sample, inputs, cotangent), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_threads_do_not_change_a_bit(problem):
    inputs = problem(((16, 16), (8, 8)), B=4, Q=320, H=4, C=8, P=4, dtype=torch.float32)
    cotangent = torch.randn(4, 320, 32, generator=torch.Generator().manual_seed(5))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results(weighted_rows, inputs, cotangent)
        torch.set_num_threads(3)
        together = results(weighted_rows, inputs, cotangent)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_inputs_are_left_alone(problem):
    inputs = problem(LEVELS)
    outermost = inputs[2].movedim(-1, 0).contiguous().movedim(0, -1)  # (x, y) as planes, as the arithmetic wants them
    inputs = (*inputs[:2], outermost, inputs[3])
    before = [tensor.clone() for tensor in inputs]
    cotangent = torch.ones(2, 5, 6, dtype=torch.float64)
    results(weighted_rows, inputs, cotangent)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True)) and (cotangent == 1).all()
