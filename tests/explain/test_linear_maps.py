"""Both kinds of operators against their matrices."""

import pytest
import torch
from ms_deform_attn import dense_attention

from lightning_xai.explain.attention_record import AttentionRecord, DeformableRecord
from lightning_xai.explain.linear_maps import DeformableMap, DenseMap
from lightning_xai.explain.streams import Site

SHAPES = torch.tensor([[3, 4], [2, 2]])
SITE = Site("site", "dense", "query", "image", "decoder", 0)


@pytest.fixture
def dense():
    return AttentionRecord(SITE, torch.rand(2, 3, 5, 16, dtype=torch.float64).softmax(-1))


@pytest.fixture
def deformable():
    torch.manual_seed(0)
    locations = torch.rand(2, 5, 3, 2, 2, 2, dtype=torch.float64) * 1.2 - 0.1
    weights = torch.rand(2, 5, 3, 4, dtype=torch.float64).softmax(-1).unflatten(-1, (2, 2))
    value = torch.randn(2, 16, 3, 4, dtype=torch.float64)
    value[1, 10:13] = 0  # padding
    return DeformableRecord(SITE, SHAPES, locations, weights, value)


def matrix_of(record, weights=None):
    weights = record.weights if weights is None else weights
    if isinstance(record, AttentionRecord):
        return weights.mean(1)
    matrix = dense_attention(record.shapes, record.sampling_locations, weights).mean(1)
    return matrix * record.read[:, None]


@pytest.mark.parametrize("kind", ["dense", "deformable"])
@pytest.mark.parametrize("around", [torch.enable_grad, torch.inference_mode])
def test_products(request, kind, around):
    record = request.getfixturevalue(kind)
    weights = record.weights * torch.linspace(-1, 1, record.weights.numel()).reshape(record.weights.shape)
    for given in (None, weights):
        expected = matrix_of(record, given)
        with around():
            operator = record.averaged(given)
            x, r = torch.randn(2, 16, 3, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
            torch.testing.assert_close(operator.mix(x), expected @ x)
            torch.testing.assert_close(operator.mix_back(r), r @ expected)
            torch.testing.assert_close(operator.rows(torch.tensor([4, 1])), expected[[0, 1], [4, 1]])
            assert not operator.mix_back(r).requires_grad


@pytest.mark.parametrize("kind", ["dense", "deformable"])
def test_operators_of_chosen_samples(request, kind):
    record = request.getfixturevalue(kind)
    samples = torch.tensor([1, 0, 1])
    r = torch.randn(3, 2, 5, dtype=torch.float64)
    expected = r @ matrix_of(record)[samples]
    torch.testing.assert_close(record.averaged(samples=samples).mix_back(r), expected)
    torch.testing.assert_close(record.averaged(record.weights[samples], samples).mix_back(r), expected)


def test_read_tokens(dense, deformable):
    assert dense.read.all()
    assert (~deformable.read).nonzero().tolist() == [[1, 10], [1, 11], [1, 12]]
    hidden = dense.probabilities.clone()
    hidden[0, :, :, 3] = 0
    assert (~AttentionRecord(SITE, hidden).read).nonzero().tolist() == [[0, 3]]


def test_a_record_of_stored_numbers_cannot_be_applied(deformable):
    stored = DeformableRecord(SITE, SHAPES, deformable.sampling_locations, deformable.attention_weights)
    with pytest.raises(ValueError, match="the record of site has no value"):
        stored.averaged()


def test_autocast_of_the_caller_does_not_round(dense):
    record = AttentionRecord(SITE, dense.probabilities.float())
    r = torch.rand(2, 1, 5)
    expected = record.averaged().mix_back(r)
    with torch.autocast("cpu", torch.bfloat16):
        got = record.averaged().mix_back(r)
    assert torch.equal(got, expected)


def test_autocast_rounds_no_relevance():
    shapes = torch.tensor([[3, 4]])
    read = torch.ones(1, 12, dtype=torch.bool)
    locations, weights, x = torch.rand(1, 5, 2, 1, 3, 2), torch.rand(1, 5, 2, 1, 3), torch.rand(1, 12, 2)
    for linear in (DeformableMap(shapes, locations, weights, read), DenseMap(torch.rand(1, 5, 12))):
        plain = linear.mix(x), linear.mix_back(x[:, :5].transpose(1, 2))
        with torch.autocast("cpu", torch.bfloat16):
            inside = linear.mix(x), linear.mix_back(x[:, :5].transpose(1, 2))
        assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))
