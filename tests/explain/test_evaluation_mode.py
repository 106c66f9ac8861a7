"""Explaining a network in the middle of its training leaves its modes, its statistics and random states alone."""

import pytest
import torch
from torch import nn

from lightning_xai.explain.evaluation_mode import evaluation_mode, in_modes
from lightning_xai.explain.explanation import explain
from lightning_xai.explain.methods import method
from lightning_xai.explain.targets import class_targets


class Trained(nn.Module):
    """A classifier with what makes training different, inside a part that may be checkpointed."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.norm = nn.BatchNorm1d(16).double()
        self.drop = nn.Dropout(0.5)

    def forward(self, tokens):
        tokens = self.norm(tokens.transpose(1, 2)).transpose(1, 2)
        return self.inner(self.drop(tokens))

    def sites(self):
        return [type(s)(f"inner.{s.module}", s.kind, s.writes, s.reads, s.part, s.layer) for s in self.inner.sites()]

    def streams(self, outputs):
        return self.inner.streams(outputs)


def test_modes_are_put_back_also_after_an_error():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.Dropout()))
    net[1].eval()
    modes = [module.training for module in net.modules()]
    state = torch.get_rng_state()
    with pytest.raises(KeyError), evaluation_mode(net):
        assert not any(module.training for module in net.modules())
        torch.rand(3)
        raise KeyError
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    with in_modes({net[1]: True}):
        assert net[1].training
    assert not net[1].training


@pytest.mark.parametrize("name", ["generic_relevance", "transformer_attribution", "full_lrp", "raw_attention"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_explaining_while_training(classifier, image_tokens, name, checkpointed):
    net = Trained(classifier)
    classifier.checkpointed = checkpointed

    def explained():
        return explain(net, (image_tokens,), lambda logits: class_targets(logits, torch.tensor([[0, 1]] * 3)), chosen)

    chosen = method(name)
    net.eval()
    expected = explained().relevance["image"]
    net.train()
    kept, state = {key: value.clone() for key, value in net.state_dict().items()}, torch.get_rng_state()
    got = explained().relevance["image"]
    torch.testing.assert_close(got, expected)
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in net.state_dict().items():
        assert torch.equal(value, kept[key]), key
