import pytest
import torch

from lightning_xai.explain.explanation import explain
from lightning_xai.explain.methods import METHODS, method
from lightning_xai.explain.targets import class_targets
from lightning_xai.nets.small_vit import build_small_vit

ATTENTION = [name for name in METHODS if name not in ("integrated_gradients", "gradient_x_input", "occlusion")]


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_it_classifies_small_pictures(pool):
    net = build_small_vit(5, image_size=32, global_pool=pool)
    outputs = net(torch.randn(2, 3, 32, 32))
    assert outputs["logits"].shape == (2, 5) and outputs["features"].shape == (2, 64) and outputs["grid"] == (4, 4)
    assert net.num_classes == 5 and not net.training
    assert sum(parameter.numel() for parameter in net.parameters()) < 250_000


@pytest.mark.parametrize("name", ATTENTION)
def test_every_method_explains_it(name):
    torch.manual_seed(0)
    net = build_small_vit(4, image_size=32, depth=2)
    found = explain(
        net, (torch.randn(2, 3, 32, 32),), lambda o: class_targets(o["logits"], rows=net.readout(o)), method(name)
    )
    maps = found.on_pixels((32, 32))
    assert maps.shape == (2, 32, 32) and maps.isfinite().all()


def test_another_size_must_fit_the_stem():
    with pytest.raises(ValueError, match="image_size=50 must be a multiple of 8"):
        build_small_vit(4, image_size=50)
