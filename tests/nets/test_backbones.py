"""Backbones: which maps they give, what trains, which names and weights they take."""

import pytest
import timm
import torch
import torchvision

from lightning_xai.nets.backbones import build_backbone, choose_maps

IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
SMALL = {"layers": [1, 1, 1, 1], "channels": [16, 32, 48, 64], "stem_width": 8}


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("resnet18", None, {}),
        ("resnet50", None, {"dilation": True}),
        ("resnet50", None, {"num_maps": 1}),
        ("timm:resnet18", SMALL, {}),
        ("timm:resnet18", SMALL, {"out_strides": [4, 16]}),
        ("timm:resnet10t", {"norm_layer": "groupnorm1"}, {"num_maps": 2}),
    ],
)
def test_maps_have_the_channels_and_strides_that_the_backbone_says(name, arguments, options):
    backbone = build_backbone(name, arguments, **options).eval()
    maps = backbone(IMAGES)
    assert [m.shape[1] for m in maps] == list(backbone.channels)
    assert [(m.shape[2], m.shape[3]) for m in maps] == [(64 // s, 96 // s) for s in backbone.strides]


@pytest.mark.parametrize(
    ("strides", "num_maps", "wanted", "chosen"),
    [
        ([4, 8, 16, 32], 3, None, [1, 2, 3]),
        ([4, 8, 16, 32], 1, None, [3]),
        ([4, 8], 3, None, [0, 1]),
        ([4, 8, 16, 16], 3, [8, 16], [1, 3]),
        ([4, 8, 16, 16], 3, [16, 16], [2, 3]),
    ],
)
def test_choose_maps(strides, num_maps, wanted, chosen):
    assert choose_maps(strides, num_maps, wanted, "x") == chosen


def test_unused_stages_are_cut_off():
    """Parameters without gradient would stop distributed training."""
    for name, arguments in (("resnet18", None), ("timm:resnet18", SMALL)):
        body = build_backbone(name, arguments, out_strides=[8]).body
        assert {child.split(".")[0] for child, _ in body.named_parameters()} == {"conv1", "bn1", "layer1", "layer2"} - (
            {"bn1"} if name == "resnet18" else set()
        )


def test_resnet_is_torchvisions_with_frozen_norm_and_trains_stages_2_to_4(tmp_path):
    torch.manual_seed(0)
    reference = torchvision.models.resnet18()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    torch.save(reference.state_dict(), tmp_path / "resnet18.pth")
    backbone = build_backbone("resnet18", num_maps=1, weights=str(tmp_path / "resnet18.pth")).train()

    features = torchvision.models._utils.IntermediateLayerGetter(reference.eval(), {"layer4": "0"})(IMAGES)["0"]
    torch.testing.assert_close(backbone(IMAGES)[0], features, rtol=1e-4, atol=1e-4)
    trained = {name.split(".")[0] for name, p in backbone.body.named_parameters() if p.requires_grad}
    frozen = {name.split(".")[0] for name, p in backbone.body.named_parameters() if not p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    assert frozen == {"conv1", "layer1"}
    assert "bn1.running_var" in dict(backbone.body.named_buffers())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg16"}, r"'vgg16' is unknown"),
        ({"name": "timm:no_such_net"}, r"no network 'no_such_net'"),
        ({"name": "timm:resnet18", "arguments": {"depth": 3}}, r"backbone_args \{'depth': 3\}"),
        ({"name": "timm:resnet18", "dilation": True}, r"dilation=True works with torchvision"),
        ({"name": "resnet18", "dilation": True}, r"bottleneck"),
        ({"name": "resnet18", "arguments": {"layers": 1}}, r"\['layers'\] need a timm backbone"),
        ({"name": "resnet18", "out_strides": [8, 64]}, r"\[8, 64\].*\[4, 8, 16, 32\]"),
        ({"name": "timm:swin_tiny_patch4_window7_224"}, r"layout NHWC"),
    ],
)
def test_what_cannot_be_built_says_why(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(**arguments)


def test_weights_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        build_backbone("resnet18", weights=str(tmp_path / "missing.pth"))
    torch.save({"bn1.scale": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"missing \['conv1.weight'.*unexpected \['bn1.scale'\]"):
        build_backbone("resnet18", weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_weights_of_a_timm_classifier(name, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    classifier = timm.create_model(name).eval()
    save_file(classifier.state_dict(), tmp_path / "model.safetensors")
    backbone = build_backbone(f"timm:{name}", out_strides=[8], weights=str(tmp_path / "model.safetensors")).eval()
    expected = next(m for m in classifier.forward_intermediates(IMAGES, intermediates_only=True) if m.shape[2] == 8)
    torch.testing.assert_close(backbone(IMAGES)[0], expected, rtol=1e-4, atol=1e-4)
