"""Attention is seen however a network computes it, and computed as the network would have."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_xai.explain.recording import record
from lightning_xai.explain.streams import Site
from lightning_xai.explain.targets import class_targets


class Attending(nn.Module):
    """A network that is one call of attention."""

    def __init__(self, function, heads=None):
        super().__init__()
        self.attend = nn.Module()
        self.attend.forward = function
        if heads is not None:
            self.attend.num_heads = heads

    def forward(self, *args):
        return self.attend(*args)

    def sites(self):
        return [Site("attend", "dense", "image", "image", "encoder", 0)]


def q_k_v(*shape, keys=None, heads=None):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(*shape, generator=generator)
    *front, _, width = shape
    if heads is not None:
        front[-1] = heads
    k, v = (torch.randn(*front, keys or shape[-2], width, generator=generator) for _ in range(2))
    return q, k, v


MASK = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (q_k_v(2, 3, 4, 8), {}),
        (q_k_v(2, 3, 4, 8, keys=5), {"scale": 0.2}),
        (q_k_v(2, 3, 4, 8, keys=5), {"attn_mask": MASK}),
        (q_k_v(2, 3, 4, 8, keys=5), {"attn_mask": torch.linspace(-2, 2, 20).reshape(4, 5)}),
        (q_k_v(2, 3, 4, 8, keys=5), {"attn_mask": torch.zeros(4, 5).masked_fill(~MASK, -torch.inf)}),
        (q_k_v(2, 3, 4, 8), {"is_causal": True}),
        (q_k_v(2, 6, 4, 8, heads=2), {"enable_gqa": True}),
        (q_k_v(6, 4, 8), {}),
    ],
    ids=["plain", "scale", "mask", "bias", "infinite bias", "causal", "grouped", "flat"],
)
@pytest.mark.parametrize("gradients", [False, True])
def test_scaled_dot_product_attention(arguments, options, gradients):
    """Outputs as without recording; the probabilities mix the values to that output."""
    net = Attending(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options), heads=3)
    plain = net(*arguments)
    with record(net, gradients=gradients) as recording:
        recorded = net(*arguments)
    torch.testing.assert_close(recorded, plain, rtol=1e-5, atol=1e-6)
    probabilities, value = recording["attend"].probabilities, arguments[2]
    if "enable_gqa" in options:
        value = value.repeat_interleave(3, 1)
    if plain.dim() == 3:
        assert probabilities.shape == (2, 3, 4, 4)
        probabilities = probabilities.flatten(0, 1)
    torch.testing.assert_close(probabilities @ value, plain, rtol=1e-5, atol=1e-6)
    if options.get("attn_mask") is not None and options["attn_mask"].isinf().any():
        assert probabilities[:, :, 1].abs().max() == 0
    if options.get("is_causal"):
        assert probabilities.triu(1).abs().max() == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.softmax(x, -1),
        lambda x: torch.softmax(x, dim=3),
        lambda x: x.softmax(dim=-1),
        lambda x: F.softmax(x, dim=-1, dtype=torch.float64).to(x.dtype),
        lambda x: nn.Softmax(dim=-1)(x),
    ],
    ids=["torch", "positive dim", "method", "functional", "module"],
)
@pytest.mark.parametrize("flat", [False, True])
def test_explicit_softmax(function, flat):
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    if flat and function(logits).dim() == 4:
        given = logits.flatten(0, 1)
        net = Attending(lambda x: F.softmax(x, dim=-1), heads=3)
    else:
        given, net = logits, Attending(function)
    plain = net(given)
    with record(net) as recording:
        recorded = net(given)
    assert torch.equal(plain, recorded)
    torch.testing.assert_close(recording["attend"].probabilities.float(), logits.softmax(-1))


def test_softmax_over_other_axes_is_no_attention():
    net = Attending(lambda x: x.softmax(1) + x.softmax(-1))
    with record(net) as recording:
        net(torch.randn(2, 3, 4, 5))
    assert recording["attend"].probabilities.shape == (2, 3, 4, 5)


class Multihead(nn.Module):
    """nn.MultiheadAttention as a site."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.attend = nn.MultiheadAttention(8, 2, **options)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.6)
        self.eval()

    def forward(self, *args, **kwargs):
        return self.attend(*args, **kwargs)

    def sites(self):
        return [Site("attend", "dense", "image", "image", "encoder", 0)]


PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key_padding_mask": PADDING},
        {"attn_mask": torch.ones(5, 5).triu(1).bool()},
        {"attn_mask": torch.ones(5, 5).triu(1).bool(), "is_causal": True},
        {
            "attn_mask": torch.linspace(-2, 2, 100).sin().reshape(4, 5, 5),
            "key_padding_mask": torch.zeros(2, 5).masked_fill(PADDING, -torch.inf),
        },
    ],
    ids=["plain", "padding", "mask", "causal", "both"],
)
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("built", [{"batch_first": True}, {"batch_first": True, "kdim": 6, "vdim": 6}])
def test_multihead_attention(options, need_weights, around, built):
    net = Multihead(**built)
    x = torch.randn(2, 5, 8)
    y = x if "kdim" not in built else torch.randn(2, 5, 6)
    expected = net(x, y, y, **{**options, "need_weights": True, "average_attn_weights": False, "is_causal": False})
    with around(), record(net) as recording:
        output, weights = net(x, y, y, need_weights=need_weights, **options)
    torch.testing.assert_close(output, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(recording["attend"].probabilities, expected[1], rtol=1e-5, atol=1e-6)
    if need_weights:
        torch.testing.assert_close(weights, expected[1].mean(1), rtol=1e-5, atol=1e-6)
    else:
        assert weights is None


def test_attention_inside_a_transformer_layer():
    """The fused encoder layer of inference would hide it."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x):
            return self.layer(x)

        def sites(self):
            return [Site("layer.self_attn", "dense", "image", "image", "encoder", 0)]

    net, x = Encoder().eval(), torch.randn(2, 5, 8)
    with torch.inference_mode():
        plain = net(x)
        with record(net) as recording:
            recorded = net(x)
    torch.testing.assert_close(plain, recorded, rtol=1e-5, atol=1e-6)
    assert recording["layer.self_attn"].probabilities.shape == (2, 2, 5, 5)


@pytest.mark.parametrize("route", ["softmax", "flat softmax"])
def test_the_way_does_not_matter(classifier, image_tokens, route):
    found = []
    for way in ("sdpa", route):
        with record(classifier.by(way), gradients=True) as recording:
            targets = class_targets(classifier(image_tokens), 1)
        found.append(recording.reduced_gradients(targets, lambda record, gradient: gradient * record.weights))
    torch.testing.assert_close(*found)


def test_attention_outside_of_sites_is_left_alone(classifier, image_tokens):
    classifier.sites = lambda: [Site("layers.1", "dense", "image", "image", "encoder", 1)]
    with record(classifier) as recording:
        classifier(image_tokens)
    assert list(recording) == ["layers.1"]
