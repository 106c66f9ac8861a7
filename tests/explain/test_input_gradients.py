"""Input gradients and occlusion say what is derived by hand, of every network input that they can change."""

import sys

import pytest
import torch
from torch import nn

from lightning_xai.explain.explanation import explain
from lightning_xai.explain.input_gradients import GradientXInput, IntegratedGradients, Occlusion
from lightning_xai.explain.streams import FeatureLevels, Patches, Site, Stream
from lightning_xai.explain.targets import Targets, class_targets

pytest.importorskip("captum")


class Pictures(nn.Module):
    """Logits are the attended mean of 2 x 3 cells, each the sum of f(x) w over its 2 x 2 pixels and 3 channels."""

    def __init__(self, bend: bool = False, masked: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, 4, 6, dtype=torch.float64))
        self.attend = nn.Identity()
        self.attend.forward = lambda x: torch.zeros(len(x), 1, 6, 6).double().softmax(-1) @ x[:, None]
        self.bend, self.masked = bend, masked

    def forward(self, images, mask=None):
        values = (images**3 if self.bend else images)[:, None] * self.weight
        if mask is not None:
            values = values.masked_fill(mask[:, None, None], 0)
        cells = values.sum(2).unflatten(2, (2, 2)).unflatten(4, (3, 2)).sum((3, 5))  # (B, 2, 2, 3)
        return {"logits": 6 * self.attend(cells.flatten(2).transpose(1, 2))[:, 0, 0]}

    def sites(self):
        return [Site("attend", "dense", "image", "image", "encoder", 0)]

    def streams(self, outputs):
        return {"image": Stream("image", FeatureLevels(((2, 3),)) if self.masked else Patches((2, 3), prefix=0))}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Pictures()


@pytest.fixture
def images():
    return torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


CLASSES = torch.tensor([[0, 1], [1, 0]])


def of_classes(outputs):
    return class_targets(outputs["logits"], CLASSES)


def in_cells(pixels):
    return pixels.unflatten(1, (2, 2)).unflatten(3, (3, 2)).sum((2, 4)).flatten(1)


@pytest.mark.parametrize("method", [GradientXInput(), IntegratedGradients(steps=3), Occlusion()], ids=str)
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_of_a_linear_network_all_say_the_products(net, images, method, around):
    """Where the logits are linear each pixel's share is x w; a window has that of all its pixels."""
    with around():
        got = explain(net.train(), (images.clone(),), of_classes, method)
    expected = (images[:, None] * net.weight.detach())[torch.arange(2)[:, None], CLASSES].flatten(0, 1).sum(1)
    torch.testing.assert_close(got.relevance["image"], in_cells(expected), rtol=1e-5, atol=1e-5)
    if not isinstance(method, Occlusion):
        torch.testing.assert_close(got.pixels["image"], expected)
        torch.testing.assert_close(got.on_pixels((4, 6)), expected)
    assert net.training and net.weight.grad is None and not got.relevance["image"].requires_grad


def test_integrated_gradients_sum_to_the_difference_of_scores(images):
    torch.manual_seed(1)
    net = Pictures(bend=True)
    got = explain(net, (images,), of_classes, IntegratedGradients(baseline=0.5, steps=4))
    with torch.no_grad():
        change = net(images)["logits"] - net(torch.full_like(images, 0.5))["logits"]
    torch.testing.assert_close(got.relevance["image"].sum(1), change.gather(1, CLASSES).flatten())
    coarse = explain(net, (images,), of_classes, GradientXInput())
    torch.testing.assert_close(coarse.relevance["image"].sum(1), 3 * got.scores)  # Euler's theorem for cubes


def test_occlusion_by_windows_of_its_own(net, images):
    got = explain(net, (images,), of_classes, Occlusion(window=1))
    expected = (images[:, None] * net.weight.detach())[torch.arange(2)[:, None], CLASSES].flatten(0, 1).sum(1)
    torch.testing.assert_close(got.pixels["image"], expected, rtol=1e-5, atol=1e-5)
    everything = explain(net, (images,), of_classes, Occlusion(window=99))
    assert everything.pixels["image"].flatten(1).std(1).max() < 1e-6
    with pytest.raises(ValueError, match="window is 0, expected at least 1 pixel"):
        Occlusion(window=0)
    with pytest.raises(ValueError, match="steps is 0, expected at least 1"):
        IntegratedGradients(steps=0)


@pytest.mark.parametrize("method", [IntegratedGradients(baseline=1.0, steps=2), Occlusion(baseline=1.0)], ids=str)
def test_padding_has_nothing_and_the_mask_goes_along(images, method):
    torch.manual_seed(0)
    net = Pictures(masked=True)
    mask = torch.zeros(2, 4, 6, dtype=torch.bool)
    mask[0, :, 4:], mask[1, 2:] = True, True
    got = explain(net, (images, mask), of_classes, method)
    assert got.pixels["image"][mask.repeat_interleave(2, 0)].abs().max() == 0
    assert got.pixels["image"][~mask.repeat_interleave(2, 0)].abs().min() > 0


def test_targets_must_say_what_they_are(net, images):
    def own(outputs):
        samples = torch.arange(2)
        return Targets(outputs["logits"].sum(1), samples, {"image": samples * 0})

    with pytest.raises(ValueError, match="the targets do not say which of the network's outputs their scores are"):
        explain(net, (images,), own, GradientXInput())


def test_without_captum_the_extra_is_named(net, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning_xai\[captum\]'"):
        explain(net, (images,), of_classes, GradientXInput())
