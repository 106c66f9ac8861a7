"""Training on the network's own words."""

import pytest
import torch

from lightning_xai.nets.asg_captioner import MODEL_TYPES, ASGCaptioner
from lightning_xai.tasks.scheduled_sampling import ScheduledSampling, sampled_logits

CAPTIONS = torch.tensor([[0, 4, 5, 6, 1], [0, 7, 8, 1, 1]])


def make_net(model_type: str = "rgcn.flow.memory") -> ASGCaptioner:
    torch.manual_seed(0)
    return ASGCaptioner(model_type, 9, 6, 5, hidden_dim=8, dropout=0.0)


def make_graph(count: int = 2) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    return {
        "mp_fts": torch.rand(count, 5, generator=draws),
        "attn_fts": torch.rand(count, 3, 6, generator=draws),
        "attn_masks": torch.ones(count, 3, dtype=torch.bool),
        "node_types": torch.tensor([[0, 1, 0]] * count),
        "attr_order_idxs": torch.tensor([[0, 1, 0]] * count),
        "rel_edges": torch.rand(count, 6, 3, 3, generator=draws),
        "flow_edges": torch.eye(3).expand(count, 3, 3),
    }


def test_the_published_schedule():
    rates = [ScheduledSampling().at(epoch) for epoch in (0, 4, 5, 9, 10, 15, 20, 99)]
    assert rates == pytest.approx([0.05, 0.05, 0.1, 0.1, 0.15, 0.2, 0.25, 0.25])
    assert ScheduledSampling(0.1, 0.1).at(50) == 0.1


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_without_draws_it_is_the_network(model_type):
    net, graph = make_net(model_type), make_graph()
    torch.testing.assert_close(sampled_logits(net, graph, CAPTIONS, 0.0), net(graph, CAPTIONS)["logits"])


def test_all_own_words_are_drawn_as_the_network_finds_them_probable():
    net, graph, captions = make_net(), make_graph(), CAPTIONS.clone()
    torch.nn.init.normal_(net.decoder.embedding["we"].weight, std=9)  # what is probable differs from word to word
    torch.manual_seed(5)
    found = sampled_logits(net, graph, captions, 1.0)
    assert torch.equal(captions, CAPTIONS)
    torch.manual_seed(5)
    words = [captions[:, 0]]
    for _ in range(3):  # the same words, found by asking the network again and again
        logits = net(graph, torch.stack([*words, words[-1]], 1))["logits"][:, -1]
        words.append(logits.softmax(1).multinomial(1)[:, 0])
        torch.rand(2)
    torch.testing.assert_close(found, net(graph, torch.stack([*words, words[-1]], 1))["logits"])


def test_the_rate_is_the_share_of_own_words():
    net, seen = make_net("node"), []
    gates = net.decoder.word_gates
    net.decoder.word_gates = lambda words, encoded: seen.append(words) or gates(words, encoded)
    with torch.no_grad():
        net.decoder.embedding["we"].weight.zero_()  # tied: all nine words are equally probable
        sampled_logits(net, make_graph(2000), torch.tensor([[0, 2, 2, 2]]).expand(2000, 4), 0.3)
    assert torch.equal(seen[0], torch.zeros(2000, dtype=torch.int64))
    changed = torch.stack(seen[1:]) != 2
    assert float(changed.float().mean()) == pytest.approx(0.3 * 8 / 9, abs=0.025)  # four standard errors of 6000 draws


def test_gradients_reach_the_weights():
    net = make_net()
    sampled_logits(net, make_graph(), CAPTIONS, 0.5).logsumexp(2).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("wrong", [{"rate": 0.5}, {"rate": -0.1}, {"max_rate": 1.5}, {"every": 0}, {"increase": -1.0}])
def test_shares_are_checked(wrong):
    with pytest.raises(ValueError, match=r"ScheduledSampling\(.*0 <= rate <= max_rate <= 1"):
        ScheduledSampling(**wrong)
