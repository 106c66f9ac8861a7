"""Methods are found by name; the right relevance is known for networks whose answer can be derived by hand."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from lightning_xai.explain.generic_relevance import GenericRelevance
from lightning_xai.explain.method import Needs
from lightning_xai.explain.methods import METHODS, method
from lightning_xai.explain.recording import record
from lightning_xai.explain.streams import Patches, Site, Stream
from lightning_xai.explain.targets import class_targets

BY_CAPTUM = ("gradient_x_input", "integrated_gradients", "occlusion")
INSTALLED = [name for name in METHODS if find_spec("captum") or name not in BY_CAPTUM]


class BagOfTokens(nn.Module):
    """Logits are the mean over tokens of a linear function: attention is uniform, and the class token adds it up."""

    def __init__(self):
        super().__init__()
        self.attend = nn.Identity()
        self.attend.forward = lambda tokens: torch.zeros(len(tokens), 1, 9, 9).softmax(-1) @ tokens[:, None]
        self.head = nn.Linear(9, 2, bias=False)

    def forward(self, tokens):
        return self.head(self.attend(tokens)[:, 0, 0])

    def sites(self):
        return [Site("attend", "dense", "image", "image", "encoder", 0)]

    def streams(self, outputs):
        return {"image": Stream("image", Patches((2, 4), prefix=1))}


@pytest.fixture
def bag():
    net = BagOfTokens()
    with torch.no_grad():
        net.head.weight.copy_(torch.stack([torch.arange(9.0) - 4, 4 - torch.arange(9.0)]))
    return net


def test_linear_bag_of_tokens(bag):
    """Token k is the k-th unit vector, so its share of logit c is W[c, k] / 9: relevance is its positive part."""
    with record(bag, gradients=True) as recording:
        targets = class_targets(bag(torch.eye(9)[None]), torch.tensor([[0, 1]]))
    got = method("generic_relevance")(recording, targets)["image"]
    share = bag.head.weight.detach() / 9
    torch.testing.assert_close(got, share.clamp(min=0) + torch.eye(9)[:1])


@pytest.mark.parametrize("name", ["generic_relevance", "gradient_rollout", "attention_gradcam"])
def test_planted_token(bag, name):
    """Only patch 6 carries the class: every gradient method finds it, or (Grad-CAM, uniform) prefers nothing else."""
    tokens = torch.zeros(1, 9, 9)
    tokens[0, 6, 7] = 1
    with record(bag, gradients=True) as recording:
        targets = class_targets(bag(tokens), 0)
    got = method(name)(recording, targets)["image"][0, 1:]
    assert got.argmax() == 5 or (name == "attention_gradcam" and got.min() == got.max())


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("network", ["classifier", "bag"])
def test_every_method_on_every_network(request, name, network, image_tokens):
    net = request.getfixturevalue(network)
    tokens = image_tokens if network == "classifier" else torch.rand(3, 9, 9)
    chosen = method(name)
    with torch.inference_mode(), chosen.recorded(net) as recording:
        targets = class_targets(net(tokens), torch.tensor([[0, 1]] * 3))
    with torch.inference_mode():
        got = chosen(recording, targets)
    assert got["image"].shape == (6, 9)
    assert got["image"].isfinite().all() and not got["image"].requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("name", [name for name in INSTALLED if name not in ("random", "centre")])
def test_rows_as_weights_are_sums_of_rows(classifier, image_tokens, name):
    """Relevance read with weights of tokens is the sum of what is read of each token."""
    chosen = method(name)
    weights = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.0, 0.25, 0.0, 0.0, 0.0], dtype=torch.float64)
    with chosen.recorded(classifier) as recording:
        logits = classifier(image_tokens)
        targets = class_targets(logits, rows={"image": weights.expand(3, -1)})
        each = [class_targets(logits, token=token) for token in (1, 3, 5)]
    got = chosen(recording, targets)["image"]
    rows = [chosen(recording, one)["image"] for one in each]
    torch.testing.assert_close(got, 0.5 * rows[0] + 0.25 * rows[1] + 0.25 * rows[2])
    with chosen.recorded(classifier) as recording:
        wrong = class_targets(classifier(image_tokens), rows={"image": weights[None, 1:].expand(3, -1)})
    if chosen.needs.down_to == "sites" and name not in BY_CAPTUM:
        with pytest.raises(ValueError, match="rows holds weights of 8 tokens, but the stream has 9"):
            chosen(recording, wrong)


def test_needs_that_one_recording_serves():
    plain, none = Needs(), Needs(gradients=False)
    assert none.either(plain) == plain and none.either(none) == none
    sites, inputs = Needs(rules="plain"), Needs(rules="plain", down_to="inputs")
    assert sites.either(inputs) == inputs and sites.either(plain) is None
    assert sites.either(Needs(rules="chefer")) is None


def test_options_and_names():
    assert method("generic_relevance", start_layer=-1) == GenericRelevance(start_layer=-1)
    with pytest.raises(ValueError, match="no explanation method 'saliency'; choose from raw_attention, rollout"):
        method("saliency")
    with pytest.raises(ValueError, match="the method random has no option 'layer'; its options are seed"):
        method("random", layer=3)
