"""Recordings show what the network did and leave nothing behind."""

import pytest
import torch
from ms_deform_attn import MSDeformAttn
from torch import nn

from lightning_xai.explain.recording import record
from lightning_xai.explain.seam import attention_calls
from lightning_xai.explain.streams import Site
from lightning_xai.nets.deformable_detr import DeformableDETR

SHAPES = torch.tensor([[4, 6], [2, 3]])


class TwoLayers(nn.Module):
    """Two deformable self-attentions over a two-level map."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(MSDeformAttn(16, 2, 4, 3) for _ in range(2))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, tokens):
        reference = torch.full((tokens.shape[0], tokens.shape[1], 2, 2), 0.4)
        for layer in self.layers:
            tokens = tokens + layer(tokens, reference, tokens, SHAPES)
        return tokens

    def sites(self):
        return [Site(f"layers.{i}", "deformable", "image", "image", "encoder", i) for i in range(2)]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return TwoLayers().eval()


@pytest.fixture
def tokens():
    return torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(1))


def hooks(net):
    names = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs")
    return {(name, kind): dict(getattr(m, kind)) for name, m in net.named_modules() for kind in names}


def traces(net):
    """Everything that must be as before."""
    from torch._dynamo import eval_frame

    return {
        "hooks": hooks(net),
        "modes": torch._C._len_torch_function_stack(),
        "stance": eval_frame._stance.stance,
        "training": [m.training for m in net.modules()],
        "gradients": [p.grad for p in net.parameters()],
        "random": torch.get_rng_state().tolist(),
        "flags": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def test_recorded_numbers_are_those_of_the_layers(net, tokens):
    """Recomputed from the layer's own projections, by the formulas of the paper."""
    with torch.no_grad(), record(net) as recording:
        net(tokens)
    layer, got = net.layers[0], recording["layers.0"]
    with torch.no_grad():
        offsets = layer.sampling_offsets(tokens).view(2, 30, 4, 2, 3, 2)
        weights = layer.attention_weights(tokens).view(2, 30, 4, 6).softmax(-1).view(2, 30, 4, 2, 3)
    expected = 0.4 + offsets / torch.tensor([[6.0, 4.0], [3.0, 2.0]])[:, None]
    torch.testing.assert_close(got.sampling_locations, expected)
    torch.testing.assert_close(got.attention_weights, weights)
    assert torch.equal(got.shapes, SHAPES)


@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_output_is_the_same_and_nothing_stays(net, tokens, around):
    with around():
        plain, before = net(tokens), traces(net)
        with record(net) as recording:
            recorded = net(tokens)
        assert traces(net) == before
    assert torch.equal(plain, recorded)
    assert recording["layers.1"].output.requires_grad == (around is torch.enable_grad)


def test_nothing_stays_after_an_error(net, tokens):
    before = traces(net)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), record(net):
        net(tokens[..., :5])
    assert traces(net) == before
    with record(net) as recording:
        net(tokens)
    assert len(recording) == 2


def test_autocast(net, tokens):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), record(net) as recording:
        net(tokens)
    assert recording["layers.0"].attention_weights.float().sum((-2, -1)).sub(1).abs().max() < 0.02


def test_compiled_network_is_recorded_and_not_compiled_again(net, tokens):
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(net, backend=backend)
    with torch.no_grad():
        plain = compiled(tokens)
        count = len(compilations)
        with record(compiled) as recording:
            recorded = compiled(tokens)
        again = compiled(tokens)
    assert count > 0
    assert len(compilations) == count
    assert list(recording) == ["layers.0", "layers.1"]
    assert recording["layers.1"].attention_weights.shape == (2, 30, 4, 2, 3)
    torch.testing.assert_close(plain, recorded)
    torch.testing.assert_close(plain, again)


def test_network_inside_a_parallel_wrapper(net, tokens):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    with torch.no_grad(), record(Wrapper(net)) as recording:
        Wrapper(net)(tokens)
    assert recording["layers.0"].site.layer == 0


def test_gradient_checkpointing(net, tokens):
    """The recomputation happens in the backward pass, after the recording, and records nothing twice."""
    gradients = []
    for forward in (net, lambda tokens: torch.utils.checkpoint.checkpoint(net, tokens, use_reentrant=False)):
        with record(net) as recording:
            output = forward(tokens)
        gradients += torch.autograd.grad(output.sum(), recording["layers.0"].output)
        assert recording["layers.0"].attention_weights.shape == (2, 30, 4, 2, 3)
    assert torch.equal(*gradients) and (gradients[0] != 0).any()


def test_gradients_of_attention_weights(net, tokens):
    """Against weights that are leaves of the graph, put in place of the network's own."""
    net, tokens = net.double(), tokens.double()
    with record(net) as recording:
        output = net(tokens)
    recorded = recording["layers.0"]
    (grad_output,) = torch.autograd.grad(output.square().sum(), recorded.output)
    leaf = recorded.attention_weights.clone().requires_grad_()
    site = recorded.site
    with attention_calls(net, [site], lambda site, call: call.explicit().with_weights(leaf).run()):
        (expected,) = torch.autograd.grad(net(tokens).square().sum(), leaf)
    torch.testing.assert_close(recorded.weight_gradients(grad_output), expected)
    with torch.inference_mode(), record(net) as recording:
        net(tokens)
    inferred = recording["layers.0"].weight_gradients(grad_output)
    torch.testing.assert_close(inferred, expected)


def test_silent_site_is_named(net, tokens):
    class Short(TwoLayers):
        def forward(self, tokens):
            reference = torch.full((2, 30, 2, 2), 0.4)
            return self.layers[0](tokens, reference, tokens, SHAPES)

    short = Short()
    with pytest.raises(RuntimeError, match=r"nothing was recorded at layers\.1:"), record(short):
        short(tokens)
    with pytest.raises(RuntimeError, match=r"layers\.0, layers\.1"), record(net):
        pass


def test_site_called_twice_is_named(net, tokens):
    with torch.no_grad(), record(net) as recording:
        net(tokens)
        net(tokens)
    with pytest.raises(LookupError, match=r"'layers\.0' was called 2 times"):
        recording["layers.0"]


def test_wrong_names_say_what_there_is(net, tokens):
    with torch.no_grad(), record(net) as recording:
        net(tokens)
    with pytest.raises(KeyError, match=r"no site 'layers\.7'; the recorded sites are layers\.0, layers\.1"):
        recording["layers.7"]
    with pytest.raises(LookupError, match="no part 'decoder'; the recorded parts are encoder"):
        recording.at("decoder", 0)
    with pytest.raises(LookupError, match="no layer 2 in the encoder; it has layers 0 to 1"):
        recording.at("encoder", 2)
    assert recording.at("encoder", -1) is recording["layers.1"]


def test_networks_without_sites():
    with pytest.raises(TypeError, match="Linear declares no attention sites"), record(nn.Linear(2, 2)):
        pass

    class Dense(nn.Linear):
        def sites(self):
            return [Site("attn", "dense", "image", "image", "encoder", 0)]

    with pytest.raises(ValueError, match="Dense declares no deformable site"), record(Dense(2, 2)):
        pass


@pytest.mark.parametrize("refine", [False, True])
def test_deformable_detr(refine):
    """Every declared deformable site of the real network, and the same outputs."""
    torch.manual_seed(0)
    net = DeformableDETR(
        num_classes=3,
        backbone="resnet18",
        hidden_dim=32,
        num_heads=4,
        num_feature_levels=3,
        num_encoder_layers=1,
        num_decoder_layers=2,
        dim_feedforward=32,
        num_queries=5,
        with_box_refine=refine,
    ).eval()
    images, mask = torch.randn(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)
    with torch.inference_mode():
        plain = net(images, mask)
        with record(net) as recording:
            recorded = net(images, mask)
    assert torch.equal(plain["pred_boxes"], recorded["pred_boxes"])
    assert recording.parts() == {"encoder": 1, "decoder": 2}
    assert recording.at("decoder", 1).sampling_locations.shape == (2, 5, 4, 3, 4, 2)
    assert recording.at("encoder", 0).attention_weights.shape == (2, 8 * 12 + 4 * 6 + 2 * 3, 4, 3, 4)
