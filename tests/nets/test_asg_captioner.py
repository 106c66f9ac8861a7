"""The captioner of scene graphs: decoding agrees with teacher forcing, graphs do not disturb each other, bad input."""

import pytest
import torch

from lightning_xai.nets.asg_captioner import BOS, EOS, MODEL_TYPES, ASGCaptioner
from lightning_xai.tasks.caption_loss import caption_loss

SMALL = {"vocabulary": 12, "feature_dim": 6, "global_dim": 5, "hidden_dim": 8}
CAPTIONS = torch.tensor([[0, 5, 3, 9, 1], [0, 4, 1, 1, 1], [0, 7, 7, 1, 1]])


def captioner(model_type="rgcn.flow.memory", seed=0, **changes) -> ASGCaptioner:
    torch.manual_seed(seed)
    net = ASGCaptioner(model_type, **{**SMALL, **changes}).eval()
    for name, parameter in net.named_parameters():  # far from the start, where words hardly depend on anything
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=2.5 if "embedding.we" in name else 0.6)
    return net


def only(graph, samples, nodes):
    """Some of the graphs, with so many nodes."""
    cut = {name: values[samples] for name, values in graph.items()}
    for name in ("attn_fts", "attn_masks", "node_types", "attr_order_idxs"):
        cut[name] = cut[name][:, :nodes]
    for name in ("rel_edges", "flow_edges"):
        cut[name] = cut[name][..., :nodes, :nodes]
    return cut


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_each_graph_alone_gives_the_same(model_type, scene_graphs):
    net, graph = captioner(model_type), scene_graphs()
    together = net(graph, CAPTIONS)
    assert together["logits"].shape == (3, 4, 12) and together["attention"].shape == (3, 4, 6)
    decoded = net.greedy(graph, 7)
    for sample, count in enumerate((5, 3, 1)):
        alone = only(graph, [sample], count)
        said = net(alone, CAPTIONS[[sample]])
        near = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(said["logits"][0], together["logits"][sample], **near)
        torch.testing.assert_close(said["attention"][0], together["attention"][sample, :, :count], **near)
        assert not together["attention"][sample, :, count:].any()
        words = net.greedy(alone, 7)["words"][0]
        assert decoded["words"][sample].tolist() == words.tolist() + [EOS] * (decoded["words"].shape[1] - len(words))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_padded_nodes_left_out_change_nothing(model_type, scene_graphs):
    net, graph = captioner(model_type).double(), scene_graphs()
    graph = {name: values.double() if values.is_floating_point() else values for name, values in graph.items()}
    lean, full = net(graph, CAPTIONS), net(graph, CAPTIONS, details=True)
    assert set(lean) < set(full)
    for name in lean:
        torch.testing.assert_close(lean[name], full[name])
    gradients = [
        torch.autograd.grad(caption_loss(said["logits"], CAPTIONS, CAPTIONS != 1), net.parameters())
        for said in (lean, full)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_greedy_takes_the_most_probable_words(model_type, scene_graphs):
    net, graph = captioner(model_type), scene_graphs()
    for run_on in (True, False):
        said = net.greedy(graph, 8, run_on)
        words = said["words"]
        forced = net(graph, torch.cat([torch.full((3, 1), BOS), words], 1))
        likely = forced["logits"].log_softmax(-1).max(-1)
        before_end = torch.cat([torch.ones(3, 1), (words != EOS).cumprod(1)[:, :-1]], 1).bool()
        written = torch.ones_like(before_end) if run_on else before_end
        assert torch.equal(likely.indices[written], words[written])
        torch.testing.assert_close(likely.values[written], said["logprobs"][written], rtol=1e-4, atol=1e-5)
        for name in set(said) - {"words", "logprobs"}:
            torch.testing.assert_close(said[name][written], forced[name][written], rtol=1e-4, atol=1e-5)
            assert not said[name][~written].any()
        assert (words[~written] == EOS).all()


def test_the_summary_reads_the_mean_of_the_nodes_exactly(scene_graphs):
    net, graph = captioner("node").double(), scene_graphs()
    graph = {name: values.double() if values.is_floating_point() else values for name, values in graph.items()}
    said = net(graph, CAPTIONS, details=True)
    for sample, count in enumerate((5, 3, 1)):
        mean = said["nodes"][sample, :count].mean(0)
        expected = net.mp_encoder["ft_embed"](torch.cat([graph["mp_fts"][sample], mean]))
        torch.testing.assert_close(said["summary"][sample], expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_network_in_half_precision(model_type, scene_graphs):
    net, graph = captioner(model_type).bfloat16().train(), scene_graphs()
    graph = {name: values.bfloat16() if values.is_floating_point() else values for name, values in graph.items()}
    said = net(graph, CAPTIONS)
    assert said["logits"].dtype == torch.bfloat16
    caption_loss(said["logits"].float(), CAPTIONS, CAPTIONS != 1).backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    assert net.greedy(graph, 4)["logprobs"].dtype == torch.float32 and net.beam(graph, 2, 2, 4).counts.min() > 0


def test_captions_end_at_different_words(scene_graphs):
    lengths = set()
    for seed in range(6):
        words = captioner(seed=seed, vocabulary=5).greedy(scene_graphs(), 9)["words"]
        lengths |= set((words == EOS).long().argmax(1).tolist())
    assert len(lengths) > 3  # or the tests of what happens behind an end would test nothing


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_scores_of_beams_are_those_of_their_words(model_type, scene_graphs):
    errors = {True: 0.0, False: 0.0}
    for seed in range(4):
        net, graph = captioner(model_type, seed), scene_graphs()
        for reorder_all in errors:
            beams = net.beam(graph, width=3, pool=3, max_words=7, reorder_all=reorder_all)
            for words, logprobs in zip(beams.words.unbind(1), beams.logprobs.unbind(1), strict=True):
                captions = torch.cat([torch.full((3, 1), BOS), words.clamp(min=0)], 1)
                forced = net(graph, captions)["logits"].log_softmax(-1).gather(2, captions[:, 1:, None])[..., 0]
                error = ((forced - logprobs) * (words >= 0)).abs().max().item()
                errors[reorder_all] = max(error, errors[reorder_all])
    assert errors[True] < 1e-3
    # only what words change can be another beam's
    assert (errors[False] < 1e-3) == (model_type in ("node", "node.role", "rgcn"))


def test_one_beam_is_greedy(scene_graphs):
    net, graph = captioner(seed=3), scene_graphs()
    words = net.greedy(graph, 6, run_on=True)["words"]
    beams = net.beam(graph, width=1, pool=1, max_words=6)
    for sample in range(3):
        length = int((beams.words[sample, 0] >= 0).sum())
        assert beams.words[sample, 0, :length].tolist() == words[sample, :length].tolist()


def test_a_graph_of_no_node_is_captioned_from_the_image(scene_graphs):
    net, graph = captioner(), scene_graphs(counts=(4, 0))
    said, detailed = net(graph, CAPTIONS[:2]), net(graph, CAPTIONS[:2], details=True)
    assert not said["content_attention"][1].any() and not said["attention"][1].any()
    torch.testing.assert_close(said["attention"][0].sum(1), torch.ones(4))
    torch.testing.assert_close(detailed["logits"], said["logits"], rtol=1e-4, atol=1e-5)
    assert said["logits"].isfinite().all()
    assert net.greedy(scene_graphs(counts=(0, 0)), 4)["words"].shape[0] == 2
    other = graph | {"mp_fts": graph["mp_fts"] + 1}
    assert not torch.equal(net(other, CAPTIONS[:2])["logits"][1], said["logits"][1])


@pytest.mark.parametrize("reduced", [False, True])
def test_training_step(reduced, scene_graphs):
    net, graph = captioner(dropout=0.5).train(), scene_graphs()
    with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
        loss = caption_loss(net(graph, CAPTIONS)["logits"].float(), CAPTIONS, CAPTIONS != 1)
    loss.backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in net.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
        net.greedy(graph, 3)
        net.beam(graph, 2, 2, 3)


def test_decoding_disturbs_no_training(scene_graphs):
    net, graph = captioner().train(), scene_graphs()
    state = torch.get_rng_state()
    first, again = net.greedy(graph, 5), net.greedy(graph, 5)
    assert torch.equal(first["words"], again["words"]) and torch.equal(torch.get_rng_state(), state)
    assert net.training and all(parameter.grad is None for parameter in net.parameters())
    with torch.inference_mode():
        assert torch.equal(net.greedy(graph, 5)["words"], first["words"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "gcn"}, "model_type 'gcn' must be one of node, node.role, rgcn"),
        ({"attention": "cosine"}, "attention 'cosine' must be one of mlp, general, dot"),
        ({"word_dim": 4}, "word_dim=4 differs from hidden_dim=8.*hidden2word=True or tied=False"),
        ({"vocabulary": 2}, "vocabulary=2 words"),
    ],
)
def test_arguments_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        ASGCaptioner(**{**SMALL, **changes})


def test_words_of_another_size():
    assert ASGCaptioner(**SMALL, word_dim=4, hidden2word=True).vocabulary == 12


@pytest.mark.parametrize(
    "change, message",
    [
        ({"flow_edges": None}, "the graph has no flow_edges, which model_type 'rgcn.flow.memory' reads"),
        ({"attn_fts": torch.ones(3, 6, 7)}, r"attn_fts have shape \(3, 6, 7\), expected \(3, 6, 6\)"),
        ({"rel_edges": torch.ones(3, 5, 6, 6)}, r"rel_edges have shape \(3, 5, 6, 6\), expected \(3, 6, 6, 6\)"),
        ({"attn_masks": torch.ones(3, 6)}, "attn_masks are torch.float32: they must be bool"),
        ({"attr_order_idxs": torch.full((3, 6), 20)}, "has 20 attributes, but the network tells only 19 apart"),
    ],
)
def test_graphs_that_do_not_fit(change, message, scene_graphs):
    graph = scene_graphs() | change
    graph = {name: values for name, values in graph.items() if values is not None}
    with pytest.raises(ValueError, match=message):
        captioner().greedy(graph)


@pytest.mark.parametrize("captions", [torch.tensor([[0, 12]] * 3), torch.zeros(3, 1, dtype=torch.int64)])
def test_captions_that_do_not_fit(captions, scene_graphs):
    with pytest.raises(ValueError, match="numbers below vocabulary=12"):
        captioner()(scene_graphs(), captions)
