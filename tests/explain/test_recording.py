"""Recordings show what the network did, differentiate it and leave nothing behind."""

import gc
import weakref

import pytest
import torch
from ms_deform_attn import MSDeformAttn
from torch import nn

from lightning_xai.explain.recording import record
from lightning_xai.explain.seam import attention_calls
from lightning_xai.explain.streams import Site
from lightning_xai.explain.targets import Targets, class_targets
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
        reference = tokens.new_full((tokens.shape[0], tokens.shape[1], 2, 2), 0.4)
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
        with record(net):
            recorded = net(tokens)
        assert traces(net) == before
    torch.testing.assert_close(plain, recorded, rtol=1e-5, atol=1e-5 * plain.detach().abs().max().item())
    assert recorded.requires_grad == plain.requires_grad
    if around is not torch.enable_grad:
        assert torch.equal(plain, recorded)


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


def summed(net, output):
    """One target a sample: the sum of its squared output."""
    samples = torch.arange(len(output))
    return Targets(output.square().flatten(1).sum(1), samples, {"image": torch.zeros_like(samples)})


def whole(record, gradient):
    return gradient


def test_gradients_of_deformable_weights(net, tokens):
    """Against weights that are leaves of the graph, put in place of the network's own."""
    net, tokens = net.double(), tokens.double()
    for around in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with around(), record(net, gradients=True) as recording:
            targets = summed(net, net(tokens))
        got = recording.reduced_gradients(targets, whole)
        for site in net.sites():
            leaf = recording[site.module].weights.clone().requires_grad_()
            with attention_calls(net, [site], lambda site, call, leaf=leaf: call.explicit().with_weights(leaf).run()):
                (expected,) = torch.autograd.grad(net(tokens).square().sum(), leaf)
            torch.testing.assert_close(got[site.module], expected)


@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradients_of_dense_weights(classifier, image_tokens, around):
    """Against probabilities that the network itself keeps; several classes of every sample."""
    classes = torch.tensor([[0, 1, 2], [4, 4, 0], [3, 2, 1]])
    with around():
        inputs = image_tokens.clone()  # an inference tensor under inference_mode
        before = traces(classifier)
        with record(classifier, gradients=True) as recording:
            targets = class_targets(classifier(inputs), classes)
        got = recording.reduced_gradients(targets, whole)
        assert traces(classifier) == before
    logits = classifier.by("kept")(image_tokens)
    kept = [attention.kept for attention in classifier.layers]
    for target in range(9):
        score = logits[target // 3, classes.flatten()[target]]
        for i, expected in enumerate(torch.autograd.grad(score, kept, retain_graph=True)):
            torch.testing.assert_close(got[f"layers.{i}"][target], expected[target // 3])
    assert targets.turns().tolist() == [0, 1, 2] * 3


def test_nothing_before_the_first_site_is_differentiated(classifier, image_tokens):
    seen = []
    for gradients in (True, None):
        with record(classifier, gradients=gradients) as recording:
            hook = classifier.stem.register_forward_hook(lambda module, inputs, output: seen.append(output))
            targets = class_targets(classifier(image_tokens))
            hook.remove()
        if seen[-1].requires_grad:
            seen[-1].register_hook(lambda gradient: pytest.fail("the stem was differentiated"))
        recording.reduced_gradients(targets, whole)
    assert [output.requires_grad for output in seen] == [False, True]
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_frozen_network_has_gradients(classifier, image_tokens):
    results = []
    for frozen in (False, True):
        classifier.requires_grad_(not frozen)
        with torch.no_grad(), record(classifier, gradients=True) as recording:
            targets = class_targets(classifier(image_tokens))
        results.append(recording.reduced_gradients(targets, whole))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("gradients", [True, None])
@pytest.mark.parametrize("at_once", [1, None])
def test_gradient_checkpointing(classifier, image_tokens, gradients, at_once):
    """Checkpointed layers run again in the backward pass; they run as they were recorded and record nothing twice."""
    results = []
    for checkpointed in (False, True):
        classifier.checkpointed = checkpointed
        with record(classifier, gradients=gradients) as recording:
            targets = class_targets(classifier(image_tokens), torch.tensor([[0, 1, 2], [4, 4, 0], [3, 2, 1]]))
        results.append(recording.reduced_gradients(targets, whole, at_once=at_once))
        assert recording["layers.1"].probabilities.shape == (3, 2, 9, 9)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("layers", [1, 2])
def test_reentrant_checkpointing_is_refused(classifier, image_tokens, layers):
    """It makes no graph, and zero must not be taken for the gradient."""
    classifier.layers, classifier.norms = classifier.layers[:layers], classifier.norms[:layers]

    class Reentrant(type(classifier)):
        def forward(self, tokens):
            for attention, norm in zip(self.layers, self.norms, strict=True):
                normed = norm(tokens)
                tokens = tokens + torch.utils.checkpoint.checkpoint(attention, normed, normed, use_reentrant=True)
            return self.head(tokens[:, 0])

    classifier.__class__ = Reentrant
    with pytest.raises(RuntimeError, match="reentrant checkpointing"):
        with record(classifier, gradients=True) as recording:
            targets = class_targets(classifier(image_tokens))
        recording.reduced_gradients(targets, whole, ["layers.0"])


def test_the_graph_is_freed(classifier, image_tokens):
    """No reference cycle keeps the graph of a call once its outputs are gone."""
    gc.disable()
    try:
        with record(classifier, gradients=True) as recording:
            logits = classifier(image_tokens)
            targets = class_targets(logits)
        recording.reduced_gradients(targets, whole)
        held_by_the_graph = weakref.ref(recording)
        del recording
        assert held_by_the_graph() is not None
        del logits, targets
        assert held_by_the_graph() is None
    finally:
        gc.enable()


def test_gradients_that_cannot_be_are_refused(classifier, image_tokens):
    with torch.no_grad(), record(classifier) as recording:
        targets = class_targets(classifier(image_tokens))
    with pytest.raises(RuntimeError, match="recorded without gradients: use record\\(net, gradients=True\\)"):
        recording.reduced_gradients(targets, whole)
    with record(classifier, gradients=True) as recording:
        logits = classifier(image_tokens)
    with pytest.raises(RuntimeError, match="the targets' scores carry no gradient"):
        recording.reduced_gradients(class_targets(logits.detach()), whole)
    with record(classifier, gradients=False) as recording:
        assert not classifier(image_tokens).requires_grad


def test_autocast_cache_does_not_lose_gradients(classifier, image_tokens):
    """A cast weight made without a graph during a recording must not be what a training step then uses."""
    net = classifier.float()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad(), record(net, gradients=True) as recording:
            targets = class_targets(net(image_tokens.float()))
        got = recording.reduced_gradients(targets, whole)
        assert torch.is_autocast_cache_enabled()
        loss = net(image_tokens.float()).float().square().mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert all(each.isfinite().all() and each.abs().sum() > 0 for each in got.values())


def test_gradients_are_not_rounded_by_the_callers_autocast(classifier, image_tokens):
    net, tokens = classifier.float(), image_tokens.float()
    with record(net, gradients=True) as recording:
        targets = class_targets(net(tokens))
    expected = recording.reduced_gradients(targets, whole)
    with torch.autocast("cpu", torch.bfloat16):
        got = recording.reduced_gradients(targets, whole)
    for module, gradient in expected.items():
        assert torch.equal(got[module], gradient)


def test_a_backward_pass_goes_no_further_than_the_sites_wanted(classifier, image_tokens):
    with record(classifier, gradients=True) as recording:
        targets = class_targets(classifier(image_tokens))
    expected = recording.reduced_gradients(targets, whole)["layers.1"]
    seen = []
    got = recording.reduced_gradients(targets, lambda record, gradient: seen.append(record) or gradient, ["layers.1"])
    assert list(got) == ["layers.1"] and torch.equal(got["layers.1"], expected)
    assert seen == [recording["layers.1"]]


def test_features_on_request(classifier, encoder_decoder, image_tokens, map_tokens):
    """The tokens that a site's module was called with, (B, N, C) also where the module wants (N, B, C)."""
    seen = {}
    hook = classifier.layers[1].register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0].detach()))
    with torch.no_grad(), record(classifier, features=True) as recording:
        classifier(image_tokens)
    hook.remove()
    assert list(recording.tokens) == ["layers.0", "layers.1"]
    assert torch.equal(recording.tokens["layers.1"], seen["x"])
    with torch.no_grad(), record(encoder_decoder, features=True) as recording:
        encoder_decoder(map_tokens)
    assert recording.tokens["cross_attn.0"].shape == (3, 5, 16) and recording.count("query") == 5
    with torch.no_grad(), record(classifier) as recording:
        classifier(image_tokens)
    assert recording.tokens == {}

    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(16, 2)

        def forward(self, x):
            return self.attend(query=x, key=x, value=x)[0]

        def sites(self):
            return [Site("attend", "dense", "image", "image", "encoder", 0)]

    with torch.no_grad(), record(SequenceFirst(), features=True) as recording:
        recording.net(image_tokens.float().transpose(0, 1))
    assert torch.equal(recording.tokens["attend"], image_tokens.float())


def test_distributed_data_parallel(classifier, image_tokens):
    """A recording between two training steps of a wrapped network does not disturb the reduction of gradients."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(classifier)
        for _ in range(2):
            wrapped(image_tokens).square().mean().backward()
            before = [parameter.grad.clone() for parameter in classifier.parameters()]
            with torch.no_grad(), record(wrapped, gradients=True) as recording:
                targets = class_targets(wrapped(image_tokens))
            got = recording.reduced_gradients(targets, whole)
            assert got["layers.0"].abs().sum() > 0
            for parameter, kept in zip(classifier.parameters(), before, strict=True):
                assert torch.equal(parameter.grad, kept)
    finally:
        torch.distributed.destroy_process_group()


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

    class Without(nn.Linear):
        def sites(self):
            return []

    with pytest.raises(ValueError, match="Without declares no attention site"), record(Without(2, 2)):
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
    torch.testing.assert_close(plain["pred_boxes"], recorded["pred_boxes"], rtol=0, atol=1e-5)
    assert recording.parts() == {"encoder": 1, "decoder": 2}
    assert recording.at("decoder", 1, reads="query").probabilities.shape == (2, 4, 5, 5)
    assert recording.at("decoder", 1).sampling_locations.shape == (2, 5, 4, 3, 4, 2)
    assert recording.at("encoder", 0).attention_weights.shape == (2, 8 * 12 + 4 * 6 + 2 * 3, 4, 3, 4)


@pytest.mark.parametrize("gradients", [None, True, False])
def test_encoder_layers_of_torch_with_padding(gradients):
    """torch would run them fused, in nested tensors and without calling their attention; recorded, it is called."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def forward(self, words, padding):
            return self.encoder(words, src_key_padding_mask=padding)

        def sites(self):
            return [Site(f"encoder.layers.{i}.self_attn", "dense", "text", "text", "encoder", i) for i in range(2)]

    torch.manual_seed(0)
    net, words = Encoder().eval(), torch.randn(3, 7, 32)
    padding = torch.arange(7) >= torch.tensor([[7], [4], [2]])
    fused = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        plain = net(words, padding)
        with record(net, gradients=gradients) as recording:
            recorded = net(words, padding)
    torch.testing.assert_close(recorded[~padding], plain[~padding], rtol=0, atol=1e-5)
    assert recording["encoder.layers.1.self_attn"].probabilities.shape == (3, 4, 7, 7)
    assert torch.backends.mha.get_fastpath_enabled() == fused
