"""Scene graphs of drawn scenes."""

import numpy as np
import pytest
import torch

from lightning_xai.data.abstract_graph import AbstractGraph, GraphObject, GraphRelation
from lightning_xai.data.drawn_features import DrawnFeatures, region_features
from lightning_xai.data.embedded_scene_graphs import EmbeddedSceneGraphsModule, position_of, sentence, spoken_words

STAR = GraphObject(4, "star", ("red", "dotted"), (0, 0, 8, 8))
HEART = GraphObject(1, "heart", ("orange",), (9, 9, 20, 20))
CIRCLE = GraphObject(2, "circle", (), (30, 0, 40, 9))


def module(**arguments) -> EmbeddedSceneGraphsModule:
    return EmbeddedSceneGraphsModule(**{"n_train": 24, "n_val": 40, "n_test": 3, "batch_size": 8, **arguments})


def test_the_sentence_follows_from_the_graph():
    assert sentence(AbstractGraph((STAR, HEART, CIRCLE))) == "a red dotted star and an orange heart and a circle"
    left = GraphRelation(1, "left of", 4)
    said = sentence(AbstractGraph((HEART, STAR, CIRCLE), (left,)))
    assert said == "an orange heart to the left of a red dotted star and a circle"
    with pytest.raises(ValueError, match=r"relations \['left of'\]: a sentence states one, of its first object"):
        sentence(AbstractGraph((STAR, HEART), (left,)))


def test_each_word_speaks_of_a_node():
    graph = AbstractGraph((HEART, STAR, CIRCLE), (GraphRelation(1, "left of", 4),))
    assert spoken_words(graph) == [
        ("an", 0), ("orange", 1), ("heart", 0), ("to", 6), ("the", 6), ("left", 6), ("of", 6),
        ("a", 2), ("red", 3), ("dotted", 4), ("star", 2), ("and", -1), ("a", 5), ("circle", 5),
    ]  # fmt: skip
    data = module()
    batch = data.collate([data.val_set[index] for index in range(40)])
    assert batch["word_nodes"].shape == batch["captions"].shape
    silent = set()
    for row, nodes in enumerate(batch["nodes"]):
        for number, node in zip(batch["captions"][row].tolist(), batch["word_nodes"][row].tolist(), strict=True):
            word = data.vocabulary.words[number]
            if node < 0:
                silent.add(word)
            elif nodes.types[node] == 2:
                assert word in f"to the {nodes.names[node]}".split()
            else:
                assert word == nodes.names[node] or (nodes.types[node] == 0 and word in ("a", "an"))
        spoken = batch["word_nodes"][row]
        assert set(range(len(nodes))) <= set(spoken.tolist())  # nothing that was asked for is left unsaid
    assert silent == {"<BOS>", "<EOS>", "and"}


def test_graphs_are_true_of_their_scenes():
    data = module()
    counts, relations = set(), 0
    for index in range(40):
        scene, graph = data.val_set.scenes.scene(index), data.val_set.graph(index)
        for item in graph.objects:
            drawn = scene.objects[item.identity]
            assert item.name == drawn.shape and item.attributes == (drawn.colour, drawn.texture)[: len(item.attributes)]
            x0, y0, x1, y1 = item.box
            assert x0 - 1 <= drawn.x <= x1 + 1 and y0 - 1 <= drawn.y <= y1 + 1
        for relation in graph.relations:
            a, b = scene.objects[relation.subject], scene.objects[relation.object]
            assert {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[relation.name]
            assert position_of(scene, relation.object, relation.subject) != relation.name
        counts.add(graph.counts())
        relations += len(graph.relations)
        words = data.vocabulary.encode(graph.phrase, 30)
        assert 2 not in words and data.vocabulary.decode(words) == graph.phrase
    assert len(counts) > 8 and 4 < relations < 30


def test_training_asks_for_something_else_in_each_epoch_and_evaluation_does_not():
    data, again = module(), module()
    graphs = [data.train_set.graph(5, epoch) for epoch in range(8)]
    assert len({graph.phrase for graph in graphs}) > 3
    assert [again.train_set[epoch, 5]["phrase"] for epoch in range(8)] == [graph.phrase for graph in graphs]
    assert data.val_set.graph(5) == data.val_set.graph(5, epoch=3)
    assert module(seed=1).val_set.graph(5) != data.val_set.graph(5)


def test_nodes_see_what_they_stand_for():
    data = module()
    batch = data.collate([data.val_set[index] for index in range(12)])
    related = 0
    for sample, nodes in enumerate(batch["nodes"]):
        pixels = torch.from_numpy(data.picture("val", sample)).permute(2, 0, 1).numpy()
        seen = torch.from_numpy(region_features(pixels, nodes.boxes))
        assert torch.equal(batch["graph"]["attn_fts"][sample, : len(nodes)], seen)
        whole = torch.from_numpy(region_features(pixels, [[0, 0, 128, 128]]))[0]
        assert torch.equal(batch["graph"]["mp_fts"][sample], whole)
        related += 2 in nodes.types
    assert related  # the box around two objects was looked at too
    assert batch["graph"]["attn_fts"].shape[1] <= 10


def test_batches_and_references():
    data = module()
    batches = list(data.train_dataloader())
    assert [len(batch["captions"]) for batch in batches] == [8, 8, 8]
    (test,) = data.test_dataloader()
    assert test["names"] == ("test000000_0", "test000001_0", "test000002_0")
    assert data.references("test") == {n: [p] for n, p in zip(test["names"], test["phrases"], strict=True)}
    assert data.references("predict") == data.references("test")


def test_boxes_of_the_training_are_off_as_a_detectors_are():
    exact = EmbeddedSceneGraphsModule(n_train=4, n_val=4, batch_size=2)
    off = EmbeddedSceneGraphsModule(n_train=4, n_val=4, batch_size=2, box_jitter=0.1)
    for split, index, epoch in (("train", 1, 0), ("train", 1, 3), ("val", 2, 0)):
        before, after = (module.dataset(split).graph(index, epoch) for module in (exact, off))
        assert after.phrase == before.phrase and after.relations == before.relations
        assert after == off.dataset(split).graph(index, epoch)
        for a, b in zip(before.objects, after.objects, strict=True):
            size = np.array(a.box[2:]) - a.box[:2]
            moved = np.abs(np.array(b.box) - a.box) / np.tile(size, 2)
            assert moved.max() <= 0.1 and (moved.max() > 0) == (split == "train") and b.name == a.name
    dataset = off.dataset("train")
    sample = dataset[(3, 1)]
    expected = DrawnFeatures().features(dataset.scenes.load(1)[0], np.array(sample["nodes"].boxes))
    np.testing.assert_allclose(sample["graph"]["attn_fts"], expected[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sample["graph"]["mp_fts"], expected[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"box_jitter=0\.5 is a share"):
        EmbeddedSceneGraphsModule(box_jitter=0.5)
