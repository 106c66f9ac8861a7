"""Interventions silence exactly what they name, and leave nothing behind."""

import pytest
import torch
from jsonargparse import ArgumentParser
from ms_deform_attn import MSDeformAttn
from torch import nn

from lightning_xai.explain.intervention import Extent, Intervention, extents, intervene
from lightning_xai.explain.recording import record
from lightning_xai.explain.streams import Site

SHAPES = torch.tensor([[4, 6], [2, 3]])
HEADS, LEVELS, POINTS = 4, 2, 3


class EncoderDecoder(nn.Module):
    """One encoder layer and two decoder layers of deformable attention."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(MSDeformAttn(16, LEVELS, HEADS, POINTS) for _ in range(3))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, tokens):
        reference = torch.full((*tokens.shape[:2], LEVELS, 2), 0.4)
        memory = self.layers[0](tokens, reference, tokens, SHAPES)
        first = self.layers[1](tokens[:, :5], reference[:, :5], memory, SHAPES)
        return self.layers[2](first, reference[:, :5], memory, SHAPES)

    def sites(self):
        places = [("encoder", 0), ("decoder", 0), ("decoder", 1)]
        return [Site(f"layers.{i}", "deformable", "image", "image", *place) for i, place in enumerate(places)]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return EncoderDecoder().eval().requires_grad_(False)


@pytest.fixture
def tokens():
    return torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(1))


def used_weights(net, tokens, *interventions):
    with record(net) as recording, intervene(net, interventions):
        net(tokens)
    return {(r.site.part, r.site.layer): r.attention_weights for r in recording.values()}


def test_one_head_kept_is_the_head_alone(net, tokens):
    """A layer with one head is its output projection of that head's channels, the others being zero."""
    layer = net.layers[2]
    seen = []
    hook = layer.output_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(tokens)
    hook.remove()
    alone = torch.zeros_like(seen[0])
    alone[..., 4:8] = seen[0][..., 4:8]
    with Intervention("decoder", layers=[1], heads=[1], action="keep").applied(net):
        kept = net(tokens)
    torch.testing.assert_close(kept, layer.output_proj(alone))
    with Intervention("decoder", layers=[1], heads=[0, 2, 3]).applied(net):
        torch.testing.assert_close(net(tokens), kept)


def test_renormalised_is_masking_before_the_softmax():
    logits = torch.randn(2, 5, HEADS, LEVELS * POINTS, generator=torch.Generator().manual_seed(2))
    weights = logits.softmax(-1).unflatten(-1, (LEVELS, POINTS))
    masked = logits.unflatten(-1, (LEVELS, POINTS)).clone()
    masked[:, :, 2, 1] = -torch.inf
    masked[:, :, 2, 0, 1] = masked[:, :, 2, 0, 1]
    expected = masked.flatten(-2).softmax(-1).unflatten(-1, (LEVELS, POINTS))
    got = Intervention(heads=[2], levels=[1], mode="renormalise").weights(weights)
    torch.testing.assert_close(got, expected)
    zeroed = Intervention(heads=[2], levels=[1]).weights(weights)
    torch.testing.assert_close(zeroed[:, :, 2, 0], weights[:, :, 2, 0])
    assert zeroed[:, :, 2, 1].abs().max() == 0
    torch.testing.assert_close(zeroed[:, :, [0, 1, 3]], weights[:, :, [0, 1, 3]])


def test_a_head_without_any_weight_stays_at_zero_when_renormalised():
    weights = torch.full((1, 1, HEADS, LEVELS, POINTS), 1 / 6)
    got = Intervention(heads=[0], mode="renormalise").weights(weights)
    assert got[:, :, 0].abs().max() == 0
    torch.testing.assert_close(got[:, :, 1:], weights[:, :, 1:])


def test_keep_is_the_complement_of_mute():
    weights = torch.rand(1, 2, HEADS, LEVELS, POINTS)
    chosen = {"heads": [1, 3], "levels": [0], "points": [2]}
    mute, keep = (Intervention(action=action, **chosen).weights(weights) for action in ("mute", "keep"))
    torch.testing.assert_close(mute + keep, weights)
    assert torch.equal(keep[0, 0].nonzero(), torch.tensor([[1, 0, 2], [3, 0, 2]]))


def test_only_the_chosen_layers_change(net, tokens):
    plain = used_weights(net, tokens)
    changed = used_weights(net, tokens, Intervention("decoder", layers=[0], levels=[1]))
    torch.testing.assert_close(changed["encoder", 0], plain["encoder", 0])
    torch.testing.assert_close(changed["decoder", 0][..., 0, :], plain["decoder", 0][..., 0, :])
    assert changed["decoder", 0][..., 1, :].abs().max() == 0
    assert changed["decoder", 1].min() > 0


def test_everything_muted_leaves_the_bias(net, tokens):
    with Intervention("decoder").applied(net):
        torch.testing.assert_close(net(tokens), net.layers[2].output_proj.bias.expand(2, 5, 16))


def test_several_interventions_act_together(net, tokens):
    used = used_weights(net, tokens, Intervention(heads=[0]), Intervention("encoder", points=[1]))
    assert used["encoder", 0][:, :, 0].abs().max() == 0
    assert used["encoder", 0][..., 1].abs().max() == 0
    assert used["decoder", 0][:, :, 0].abs().max() == 0
    assert used["decoder", 0][:, :, 1:].min() > 0


def test_recording_inside_shows_the_weights_before(net, tokens):
    with Intervention(heads=[0]).applied(net), record(net) as recording:
        net(tokens)
    assert recording["layers.0"].attention_weights.min() > 0


def test_nothing_stays(net, tokens):
    plain, state = net(tokens), torch.get_rng_state()
    with Intervention(heads=[0]).applied(net):
        assert not torch.allclose(net(tokens), plain)
    assert torch.equal(net(tokens), plain)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert torch._C._len_torch_function_stack() == 0


def test_gradients_pass(net, tokens):
    tokens.requires_grad_()
    with Intervention("all", heads=[0], mode="renormalise").applied(net):
        (gradient,) = torch.autograd.grad(net(tokens).sum(), tokens)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_what_exists(net):
    assert extents(net) == {"encoder": Extent(1, 4, 2, 3), "decoder": Extent(2, 4, 2, 3)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": [4]}, "there is no head 4; heads go from 0 to 3 in the encoder, 0 to 3 in the decoder"),
        ({"part": "decoder", "layers": [2]}, "there is no layer 2; layers go from 0 to 1 in the decoder"),
        ({"layers": [2]}, "there is no layer 2"),
        ({"levels": [-1]}, "there is no level -1"),
        ({"points": []}, "points is empty; name at least one, or leave points out to mean all"),
        ({"part": "backbone"}, "part 'backbone' is none of all, encoder, decoder"),
        ({"action": "freeze"}, "action 'freeze' is none of mute, keep"),
        ({"mode": "softmax"}, "mode 'softmax' is none of zero, renormalise"),
    ],
)
def test_errors_say_what_exists(net, wrong, message):
    with pytest.raises(ValueError, match=message), Intervention(**wrong).applied(net):
        pass


def test_a_layer_of_one_part_is_enough_for_all_parts(net, tokens):
    used = used_weights(net, tokens, Intervention(layers=[1], heads=[0]))
    assert used["decoder", 1][:, :, 0].abs().max() == 0
    assert used["encoder", 0].min() > 0


def test_from_the_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--interventions", type=list[Intervention])
    given = parser.parse_args(['--interventions=[{"part": "decoder", "heads": [0, 2], "mode": "renormalise"}]'])
    made = parser.instantiate_classes(given).interventions
    assert made == [Intervention("decoder", heads=[0, 2], mode="renormalise")]
