"""Gradients and occlusion of captioners whose answers are known."""

import pytest
import torch
from torch import nn

from lightning_xai.evaluate.word_relevance import gradient_x_input, occlusion, word_logprobs, word_relevance
from lightning_xai.nets.asg_captioner import ASGCaptioner

WEIGHTS = torch.tensor([[[1.0, 0, 0], [0, -2, 0], [3, 1, 0]], [[0, 1, 1], [2, 0, 0], [0, 0, 5]]])  # (B, N, C)


def linear(graph) -> torch.Tensor:
    """(2, 2): of word t, t + 1 times a weighted sum of all features; feature zero leaves out the node's part."""
    said = (graph["attn_fts"] * WEIGHTS).sum((1, 2))
    return torch.stack([said, 2 * said], 1)


def test_a_linear_captioner_is_taken_apart_exactly():
    features = torch.arange(18.0).view(2, 3, 3) / 10
    parts = (features * WEIGHTS).sum(2)
    expected = torch.stack([parts, 2 * parts], 1)
    graph = {"attn_fts": features}
    for method in (gradient_x_input, occlusion):
        torch.testing.assert_close(method(linear, graph), expected)
    assert not features.requires_grad


def make_net() -> ASGCaptioner:
    torch.manual_seed(0)
    return ASGCaptioner("rgcn.flow.memory", 9, 6, 5, hidden_dim=8, dropout=0.5)


def make_graph() -> dict[str, torch.Tensor]:
    """Two graphs: star red heart above, and one of two nodes beside padding."""
    draws = torch.Generator().manual_seed(1)
    edges = torch.eye(4).expand(2, 4, 4).clone()
    return {
        "mp_fts": torch.rand(2, 5, generator=draws),
        "attn_fts": torch.rand(2, 4, 6, generator=draws),
        "attn_masks": torch.tensor([[True] * 4, [True, True, False, False]]),
        "node_types": torch.tensor([[0, 1, 0, 2], [0, 1, 0, 0]]),
        "attr_order_idxs": torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0]]),
        "rel_edges": torch.rand(2, 6, 4, 4, generator=draws),
        "flow_edges": edges,
    }


CAPTIONS = torch.tensor([[0, 4, 5, 6, 1], [0, 7, 8, 1, 1]])


def test_it_is_the_gradient_of_each_word_and_what_leaving_a_node_out_does():
    net, graph = make_net().double(), {n: t.double() if t.is_floating_point() else t for n, t in make_graph().items()}
    found = word_relevance(net, graph, CAPTIONS)
    net.eval()
    for sample in range(2):
        one = {name: tensor[sample : sample + 1] for name, tensor in graph.items()}
        captions = CAPTIONS[sample : sample + 1]

        def say(features, one=one, captions=captions):
            logits = net({**one, "attn_fts": features}, captions)["logits"].log_softmax(2)
            return torch.stack([logits[0, place, word] for place, word in enumerate(captions[0, 1:].tolist())])

        jacobian = torch.autograd.functional.jacobian(say, one["attn_fts"])[:, 0]  # (T, N, C)
        expected = (jacobian * one["attn_fts"]).sum(2)
        torch.testing.assert_close(found["gradient_x_input"][sample], expected, rtol=1e-4, atol=1e-7)
        for node in range(4):
            without = one["attn_fts"].clone()
            without[0, node] = 0
            with torch.no_grad():
                drop = say(one["attn_fts"]) - say(without)
            torch.testing.assert_close(
                found["occlusion"][sample, :, node], drop.to(found["occlusion"]), atol=1e-6, rtol=1e-4
            )
    (only,) = word_relevance(net, graph, CAPTIONS, ["occlusion"]).items()
    assert only[0] == "occlusion" and torch.equal(only[1], found["occlusion"])
    for relevance in found.values():
        assert relevance.shape == (2, 4, 4) and not relevance.requires_grad
        assert not relevance[1, :, 2:].any()  # padding says nothing
        assert relevance[0].abs().amin() > 0


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_is_left_behind(around):
    net = make_net().train()
    net.decoder.attn.eval()
    outside = word_relevance(net, make_graph(), CAPTIONS)
    graph = make_graph()
    before = torch.get_rng_state()
    with around():
        inside = word_relevance(net, graph, CAPTIONS.clone())
    assert torch.equal(torch.get_rng_state(), before)
    for name, relevance in outside.items():
        assert torch.equal(relevance, inside[name]) and not relevance.is_inference()
    assert net.training and not net.decoder.attn.training
    assert all(parameter.grad is None for parameter in net.parameters())


def test_logprobs_are_of_the_words_behind_the_first():
    class Net(nn.Module):
        def forward(self, graph, captions):
            return {"logits": torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]]))}

    found = word_logprobs(Net(), {}, torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(found, torch.log(torch.tensor([[0.25, 0.7]])))
