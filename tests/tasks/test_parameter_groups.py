"""Three learning rates by name; the fused update is the plain one."""

import copy

import pytest
import torch
from torch import nn

from lightning_xai.tasks.parameter_groups import make_optimizer, parameter_groups


def test_groups_by_substring_without_frozen(make_net):
    net = make_net()
    net.backbone[0].bias.requires_grad_(False)
    groups = parameter_groups(net, lr=1e-3, lr_backbone=1e-5, lr_linear_proj_mult=0.5)
    assert [group["names"] for group in groups] == [
        ["class_embed.weight", "class_embed.bias", "bbox_embed.weight", "bbox_embed.bias"],
        ["backbone.0.weight"],
        ["reference_points.weight", "reference_points.bias"],
    ]
    assert [group["lr"] for group in groups] == [1e-3, 1e-5, 5e-4]


def test_shared_parameters_are_listed_once(make_net):
    net = make_net()
    net.again = net.class_embed
    names = [name for group in parameter_groups(net) for name in group["names"]]
    assert len(names) == len(list(net.parameters()))


def test_a_name_in_both_lists_is_refused(make_net):
    with pytest.raises(ValueError, match=r"'backbone.0.weight' contains 'backbone.0' .* 'backbone'"):
        parameter_groups(make_net(), lr_linear_proj_names=["backbone"])


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_fused_update_equals_the_plain_one(kind):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    optimizers = [
        make_optimizer(parameter_groups(net, lr=0.05), kind, weight_decay=0.1, fused=net is fused)
        for net in (plain, fused)
    ]
    for _ in range(3):
        for own, other in zip(fused.parameters(), plain.parameters(), strict=True):
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for own, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_decay_acts_on_norms_and_biases_too():
    layer = nn.LayerNorm(4)
    optimizer = make_optimizer(parameter_groups(layer, lr=0.1), "adamw", weight_decay=0.5)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), torch.full((4,), 0.95))


def test_unknown_optimizer_is_named(make_net):
    with pytest.raises(ValueError, match="'adam' is unknown: it must be 'adamw' or 'sgd'"):
        make_optimizer(parameter_groups(make_net()), "adam")
