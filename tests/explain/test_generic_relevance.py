"""Generic relevance by rows, against the authors' rules written out with matrices, one target at a time."""

import pytest
import torch
from ms_deform_attn import dense_attention

from lightning_xai.explain.generic_relevance import GenericRelevance, positive_gradient_attention
from lightning_xai.explain.recording import record
from lightning_xai.explain.seam import DeformableAttentionCall, attention_calls
from lightning_xai.explain.targets import class_targets, detection_targets
from lightning_xai.nets.deformable_detr import DeformableDETR

SAMPLES = torch.tensor([0, 0, 2, 1, 2, 2])
QUERIES = torch.tensor([3, 1, 0, 4, 2, 3])
CLASSES = torch.tensor([1, 3, 0, 2, 2, 1])


def normalised(R):
    S = R - torch.eye(len(R), dtype=R.dtype)
    return S / S.sum(1, keepdim=True) + torch.eye(len(R), dtype=R.dtype)


def identity_for_zero_rows(R):
    S = R - torch.eye(len(R), dtype=R.dtype)
    sums = S.sum(1, keepdim=True)
    return torch.where(sums == 0, 0, S / sums.masked_fill(sums == 0, 1)) + torch.eye(len(R), dtype=R.dtype)


def encoder_decoder_relevance(encoder, own, cross, normalise=normalised, self_in_cross=True, aggregate=True):
    """R_qq and R_qi from the operators Abar of all layers, equation by equation."""
    R_ii, R_qq = (torch.eye(len(maps[0]), dtype=maps[0].dtype) for maps in (encoder, own))
    R_qi, wipes = torch.zeros_like(cross[0]), 0
    for A in encoder:
        R_ii = R_ii + A @ R_ii if aggregate else A @ R_ii
    for A_qq, A_qi in zip(own, cross, strict=True):
        if not aggregate:
            R_qq = A_qq @ R_qq
            R_qi = R_qq.T @ A_qi @ R_ii
            continue
        R_qq, R_qi = R_qq + A_qq @ R_qq, R_qi + A_qq @ R_qi
        added = normalise(R_qq).T @ A_qi @ normalise(R_ii) if self_in_cross else A_qi
        wipes += int(added.isnan().all())
        R_qi = R_qi + added.nan_to_num(nan=0.0)
    return R_qq, R_qi, wipes


def kept_operators(net, tokens, sample, query, label):
    """Abar of every attention for one target, from a pass of the one sample that keeps A on the graph."""
    logits = net.by("kept")(tokens[sample : sample + 1])["pred_logits"]
    groups = [[a.kept for a in group] for group in (net.encoder, net.self_attn, net.cross_attn)]
    flat = [A for group in groups for A in group]
    gradients = iter(torch.autograd.grad(logits[0, query, label], flat))
    net.by("sdpa")
    return [[(A * next(gradients)).clamp(min=0)[0].mean(0).detach() for A in group] for group in groups]


def relevance(net, tokens, method, padding=None, samples=SAMPLES, queries=QUERIES, classes=CLASSES):
    with record(net, gradients=True) as recording:
        outputs = net(tokens, padding)
        targets = detection_targets(outputs["pred_logits"], samples, queries, classes)
    return method(recording, targets)


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, {}),
        ({"zero_row": "identity"}, {"normalise": identity_for_zero_rows}),
        ({"normalise": False}, {"normalise": lambda R: R}),
        ({"self_in_cross": False}, {"self_in_cross": False}),
        ({"aggregate": False}, {"aggregate": False}),
    ],
    ids=["default", "identity", "no normalisation", "no self in 10", "no aggregation"],
)
def test_encoder_decoder_rules(encoder_decoder, map_tokens, options, reference):
    got = relevance(encoder_decoder, map_tokens, GenericRelevance(**options))
    wiped = []
    for target, (sample, query, label) in enumerate(zip(SAMPLES, QUERIES, CLASSES, strict=True)):
        operators = kept_operators(encoder_decoder, map_tokens, sample, query, label)
        R_qq, R_qi, wipes = encoder_decoder_relevance(*operators, **reference)
        torch.testing.assert_close(got["image"][target], R_qi[query], rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(got["query"][target], R_qq[query], rtol=1e-9, atol=1e-15)
        wiped.append(wipes)
    if not options:
        assert 0 < sum(wiped) < 2 * len(wiped), "the case must show layers that are wiped and layers that are not"
    if options.get("normalise", True) and options.get("aggregate", True):
        assert (got["image"] > 0).any()


def test_self_attention_rule(classifier, image_tokens):
    classes = torch.tensor([[0, 3], [1, 2], [4, 4]])
    with record(classifier, gradients=True) as recording:
        targets = class_targets(classifier(image_tokens), classes)
    got = GenericRelevance()(recording, targets)["image"]
    late = GenericRelevance(start_layer=-1)(recording, targets)["image"]
    logits = classifier.by("kept")(image_tokens)
    for target in range(6):
        sample, label = target // 2, classes.flatten()[target]
        kept = [attention.kept for attention in classifier.layers]
        gradients = torch.autograd.grad(logits[sample, label], kept, retain_graph=True)
        R = torch.eye(9, dtype=torch.float64)
        for A, G in zip(kept, gradients, strict=True):
            Abar = (A * G)[sample].clamp(min=0).mean(0).detach()
            last = torch.eye(9, dtype=torch.float64) + Abar
            R = R + Abar @ R
        torch.testing.assert_close(got[target], R[0])
        torch.testing.assert_close(late[target], last[0])


def test_a_batch_gives_what_its_samples_give(encoder_decoder, map_tokens):
    together = relevance(encoder_decoder, map_tokens, GenericRelevance())
    for target, (sample, query, label) in enumerate(zip(SAMPLES, QUERIES, CLASSES, strict=True)):
        alone = relevance(
            encoder_decoder,
            map_tokens[sample : sample + 1],
            GenericRelevance(),
            samples=torch.tensor([0]),
            queries=query[None],
            classes=label[None],
        )
        torch.testing.assert_close(together["image"][target], alone["image"][0])


@pytest.mark.parametrize("zero_row", ["wipe", "identity"])
def test_padding_changes_nothing(encoder_decoder, map_tokens, zero_row):
    plain = relevance(encoder_decoder, map_tokens, GenericRelevance(zero_row=zero_row))["image"]
    padded = torch.cat([map_tokens, torch.randn(3, 4, 16, dtype=torch.float64)], 1)
    padding = torch.arange(12).expand(3, -1) >= 8
    got = relevance(encoder_decoder, padded, GenericRelevance(zero_row=zero_row), padding)["image"]
    torch.testing.assert_close(got[:, :8], plain)
    assert got[:, 8:].abs().max() == 0
    assert (plain > 0).any()


def test_many_targets_at_once_or_one_by_one(encoder_decoder, map_tokens):
    with record(encoder_decoder, gradients=True) as recording:
        logits = encoder_decoder(map_tokens)["pred_logits"]
        targets = detection_targets(logits, SAMPLES, QUERIES, CLASSES)
    found = [recording.reduced_gradients(targets, positive_gradient_attention, at_once=n) for n in (1, 2, 3)]
    for module in recording:
        assert found[0][module].abs().sum() > 0
        for other in found[1:]:
            torch.testing.assert_close(found[0][module], other[module])


def test_wrong_options_are_refused(encoder_decoder, map_tokens):
    with pytest.raises(ValueError, match="zero_row is 'nan', expected 'wipe' or 'identity'"):
        GenericRelevance(zero_row="nan")
    with pytest.raises(ValueError, match="start_layer is 2, but the layers of the decoder go from 0 to 1"):
        relevance(encoder_decoder, map_tokens, GenericRelevance(start_layer={"decoder": 2}))
    with pytest.raises(ValueError, match="start_layer names the part 'text'; the network has decoder, encoder"):
        relevance(encoder_decoder, map_tokens, GenericRelevance(start_layer={"text": 0}))


@pytest.fixture
def deformable():
    torch.manual_seed(0)
    net = DeformableDETR(
        num_classes=3,
        backbone="resnet18",
        hidden_dim=32,
        num_heads=4,
        num_feature_levels=3,
        num_encoder_layers=2,
        num_decoder_layers=2,
        dim_feedforward=32,
        num_queries=5,
    ).eval()
    for name, parameter in net.transformer.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight", "in_proj_weight")):
            torch.nn.init.normal_(parameter, std=0.3)
    return net.double()


def dense_operators(net, images, mask, sample, query, label):
    """Abar of every attention as a matrix: the deformable ones built cell by cell."""
    sites = net.sites()
    leaves, matrices = {}, {}

    def keep(site, call):
        if isinstance(call, DeformableAttentionCall):
            call = call.explicit()
            leaf = leaves[site.module] = call.attention_weights.detach().requires_grad_()
            locations, shapes = call.sampling_locations.detach(), call.shapes
            unpadded = (call.value != 0).any(-1).any(-1)[sample]

            def matrix(G):
                A = dense_attention(shapes, locations, (G * leaf.detach()).clamp(min=0))
                return A[sample].mean(0) * unpadded

            matrices[site.module] = matrix
            return call.with_weights(leaf).run()
        leaf = leaves[site.module] = call.probabilities().detach().requires_grad_()
        matrices[site.module] = lambda G: (G * leaf.detach())[sample].clamp(min=0).mean(0)
        return call.output(leaf)

    # Leaves cut the graph between layers: weights of one site at a time, so that gradients pass through all the others.
    found = {}
    for site in sites:
        leaves.clear()
        with attention_calls(net, [site], keep):
            score = net(images, mask)["pred_logits"][sample, query, label]
        (gradient,) = torch.autograd.grad(score, leaves[site.module])
        found[site.module] = matrices[site.module](gradient).detach()
    return found


def test_deformable_detr_against_dense_matrices(deformable):
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 40:] = True
    samples, queries, classes = torch.tensor([0, 1, 0]), torch.tensor([2, 4, 0]), torch.tensor([1, 0, 2])
    with record(deformable, gradients=True) as recording:
        logits = deformable(images, mask)["pred_logits"]
        targets = detection_targets(logits, samples, queries, classes)
    got = GenericRelevance()(recording, targets)
    for target, (sample, query, label) in enumerate(zip(samples, queries, classes, strict=True)):
        found = dense_operators(deformable, images, mask, sample, query, label)
        groups = [
            [found[f"transformer.{part}.layers.{i}.{name}"] for i in range(2)]
            for part, name in (("encoder", "self_attn"), ("decoder", "self_attn"), ("decoder", "cross_attn"))
        ]
        R_qq, R_qi, _ = encoder_decoder_relevance(*groups, normalise=identity_for_zero_rows)
        torch.testing.assert_close(got["image"][target], R_qi[query], rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(got["query"][target], R_qq[query], rtol=1e-7, atol=1e-12)
        assert got["image"][target].sum() > 0
