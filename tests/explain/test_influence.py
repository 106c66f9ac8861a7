"""What cannot influence the token that is read, padding and what follows it in causal attention, changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_xai.explain.generic_relevance import GenericRelevance
from lightning_xai.explain.gradcam import AttentionGradCAM
from lightning_xai.explain.influence import influencing_tokens
from lightning_xai.explain.recording import record
from lightning_xai.explain.rollout import Rollout
from lightning_xai.explain.streams import FeatureLevels, Site, Stream, Words
from lightning_xai.explain.targets import Targets


class Captioner(nn.Module):
    """Words read earlier words and an image of six cells; logits (B, N, 3) of every word."""

    def __init__(self, layers: int = 2, causal: bool = True):
        super().__init__()
        self.own, self.cross = (
            nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(layers)) for _ in range(2)
        )
        self.head = nn.Linear(8, 3)
        self.causal = causal
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.6)
        self.double().eval()

    def forward(self, words, image, padding=None):
        later = None
        if self.causal:
            later = torch.ones(words.shape[1], words.shape[1], dtype=torch.bool).triu(1)
        for own, cross in zip(self.own, self.cross, strict=True):
            words = words + own(words, words, words, attn_mask=later, key_padding_mask=padding)[0]
            words = words + cross(words, image, image)[0]
        return self.head(F.gelu(words))

    def sites(self):
        for i in range(len(self.own)):
            yield Site(f"own.{i}", "dense", "text", "text", "decoder", i)
            yield Site(f"cross.{i}", "dense", "text", "image", "decoder", i)

    def streams(self, outputs):
        words = Words((("w",) * outputs.shape[1],) * len(outputs))
        return {"text": Stream("text", words), "image": Stream("image", FeatureLevels(((2, 3),)))}


READ = 2  # the word that is explained
METHODS = [
    GenericRelevance(zero_row="wipe"),
    GenericRelevance(zero_row="identity"),
    GenericRelevance(aggregate=False),
    Rollout(),
    AttentionGradCAM(),
    AttentionGradCAM(mean_over="row"),
]


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(2, count, 8, dtype=torch.float64, generator=generator) for count in (5, 6)]


def explained(net, method, words, image, padding=None):
    with record(net, gradients=True) as recording:
        logits = net(words, image, padding)
        samples = torch.arange(2)
        targets = Targets(logits[:, READ, 1], samples, {"text": torch.full_like(samples, READ)})
    return recording, targets, method(recording, targets)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_later_words_change_nothing(method, inputs):
    """A causal network says the same of a word without the words after it."""
    torch.manual_seed(3)
    net = Captioner()
    words, image = inputs
    recording, targets, whole = explained(net, method, words, image)
    *_, cut = explained(net, method, words[:, : READ + 1], image)
    torch.testing.assert_close(whole["image"], cut["image"])
    torch.testing.assert_close(whole["text"][:, : READ + 1], cut["text"])
    assert cut["image"].abs().sum() > 0
    present = influencing_tokens(recording, targets.rows, targets.samples)
    assert present["text"].tolist() == [[True] * (READ + 1) + [False] * 2] * 2


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_padding_changes_nothing(method, inputs):
    torch.manual_seed(4)
    net = Captioner(causal=False)
    words, image = inputs
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[:, 4] = True
    recording, targets, whole = explained(net, method, words, image, padding)
    *_, cut = explained(net, method, words[:, :4], image)
    torch.testing.assert_close(whole["image"], cut["image"])
    torch.testing.assert_close(whole["text"][:, :4], cut["text"])
    present = influencing_tokens(recording, targets.rows, targets.samples, across=True)
    assert present["text"].tolist() == [[True] * 4 + [False]] * 2
    assert present["image"].all()


def test_a_row_of_weights_is_influenced_by_what_any_of_them_is(inputs):
    net = Captioner(layers=1)
    with record(net, gradients=False) as recording:
        net(*inputs)
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.5, 0.0]])
    present = influencing_tokens(recording, {"text": weights}, torch.arange(2))
    assert present["text"].int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
