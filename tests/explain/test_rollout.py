"""Rollout of attention whose product is known."""

import pytest
import torch
from torch import nn

from lightning_xai.explain.recording import record
from lightning_xai.explain.rollout import Rollout
from lightning_xai.explain.streams import Site
from lightning_xai.explain.targets import Targets, class_targets, detection_targets


class GivenAttention(nn.Module):
    """Layers whose attention (N, N) is given; sample b of the tokens (B, N, C) is mixed by each in turn."""

    def __init__(self, *matrices):
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in matrices)
        for layer, matrix in zip(self.layers, matrices, strict=True):
            layer.forward = lambda tokens, matrix=matrix: (
                matrix.log().expand(len(tokens), 1, -1, -1).softmax(-1) @ tokens
            )

    def forward(self, tokens):
        for layer in self.layers:
            tokens = layer(tokens[:, None] if tokens.dim() == 3 else tokens)
        return tokens[:, 0]

    def sites(self):
        return [Site(f"layers.{i}", "dense", "image", "image", "encoder", i) for i in range(len(self.layers))]


def read_row(net, token, method, count=4):
    with record(net) as recording:
        net(torch.randn(1, count, 3))
    zero = torch.zeros(1, dtype=torch.int64)
    return method(recording, Targets(torch.zeros(1), zero, {"image": zero + token}))["image"][0]


def copying(*sources):
    """Token i copies token sources[i]."""
    return torch.eye(len(sources))[list(sources)]


def test_identity_attention_gives_identity():
    net = GivenAttention(torch.eye(4), torch.eye(4), torch.eye(4))
    for token in range(4):
        torch.testing.assert_close(read_row(net, token, Rollout()), torch.eye(4)[token])


def test_copied_tokens():
    """Token 0 copies 2 in the second layer, 2 copied 3 in the first: half stays on each step, by hand."""
    net = GivenAttention(copying(1, 1, 3, 3), copying(2, 1, 2, 3))
    # row 0 of (A2 + I)/2: half 0, half 2; then row 0 of (A1 + I)/2 is half 0, half 1, row 2 half 2, half 3.
    torch.testing.assert_close(read_row(net, 0, Rollout()), torch.full((4,), 0.25))
    # without normalisation the four paths count 1 each
    torch.testing.assert_close(read_row(net, 0, Rollout(normalise=False)), torch.ones(4))
    torch.testing.assert_close(read_row(net, 0, Rollout(start_layer=1)), torch.tensor([0.5, 0, 0.5, 0]))


def test_matrix_form(classifier, image_tokens):
    with record(classifier) as recording:
        logits = classifier(image_tokens)
    got = Rollout()(recording, class_targets(logits, torch.tensor([[0, 1]] * 3)))["image"]
    product = torch.eye(9, dtype=torch.float64).expand(3, 9, 9)
    for layer in recording.values():
        A = layer.probabilities.mean(1) + torch.eye(9)
        product = (A / A.sum(-1, keepdim=True)) @ product
    torch.testing.assert_close(got, product[:, 0].repeat_interleave(2, 0))
    torch.testing.assert_close(got.sum(1), torch.ones(6, dtype=torch.float64))


def test_encoder_decoder_form(encoder_decoder, map_tokens):
    """Roll_q^T A Roll_i with matrices."""

    def product(records):
        total = torch.eye(records[0].queries, dtype=torch.float64)
        for layer in records:
            A = layer.probabilities[1].mean(0) + torch.eye(layer.queries)
            total = A / A.sum(-1, keepdim=True) @ total
        return total

    with torch.no_grad(), record(encoder_decoder) as recording:
        logits = encoder_decoder(map_tokens)["pred_logits"]
    targets = detection_targets(logits, torch.tensor([1, 1]), torch.tensor([4, 0]))
    got = Rollout()(recording, targets)
    own, image = product(recording.of("query", "query")), product(recording.of("image", "image"))
    last = recording.of("query", "image")[-1].probabilities[1].mean(0)
    torch.testing.assert_close(got["image"], (own.T @ last @ image)[[4, 0]])
    torch.testing.assert_close(got["query"], own[[4, 0]])


def test_unknown_stream_is_named(classifier, image_tokens):
    with record(classifier) as recording:
        classifier(image_tokens)
    zero = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(
        ValueError, match="read the stream 'text', which no attention writes; the written ones are image"
    ):
        Rollout()(recording, Targets(torch.zeros(1), zero, {"text": zero}))
