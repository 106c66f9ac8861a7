"""Samples and batches of captioned scene graphs."""

import numpy as np
import pytest
import torch

from lightning_xai.data.abstract_graph import AbstractGraph, GraphObject, GraphRelation, graph_nodes
from lightning_xai.data.node_features import BoxFeatures, ImageFeatures
from lightning_xai.data.scene_graph import (
    SceneGraphs,
    collate_captions,
    collate_graphs,
    collate_scene_graphs,
    graph_inputs,
)
from lightning_xai.data.vocabulary import Vocabulary


def data_set(folder, **arguments) -> SceneGraphs:
    return SceneGraphs(
        folder.regions / "trn_names.npy",
        folder.regions,
        ImageFeatures(folder.annotations / "public_split" / "trn_names.npy", folder.image_features / "trn_ft.npy"),
        BoxFeatures(folder.box_features),
        Vocabulary(folder.WORDS),
        **arguments,
    )


def test_a_sample_is_graph_features_and_caption(scene_graphs):
    sample = data_set(scene_graphs)[4, 0]
    graph = sample["graph"]
    assert sample["name"] == "im0_7" and sample["phrase"] == "a big red dog chases the cat"
    assert sample["caption"] == [0, 3, 4, 5, 6, 7, 8, 9, 1]
    # dog, big, red, cat, chases: the object's own box for its attributes, the union for the relation
    assert graph["attn_fts"][:, 0].tolist() == [2, 2, 2, 0, 1] and graph["mp_fts"].tolist() == [0, 0]
    assert graph["node_types"].tolist() == [0, 1, 1, 0, 2] and graph["attr_order_idxs"].tolist() == [0, 1, 2, 0, 0]
    assert data_set(scene_graphs)[2]["caption"] == [0, 3, 2, 1]  # a zebra is unknown


def test_a_batch_is_padded_with_zeros(scene_graphs):
    data = data_set(scene_graphs)
    batch = collate_scene_graphs([data[0], data[1]])
    graph = batch["graph"]
    assert graph["attn_masks"].tolist() == [[True] * 5, [True, True, False, False, False]]
    assert graph["attn_masks"].dtype == torch.bool and graph["mp_fts"].tolist() == [[0, 0], [10, 10]]
    for name in ("attn_fts", "node_types", "attr_order_idxs"):
        assert not graph[name][1, 2:].any()
    assert not graph["flow_edges"][1, :, 2:].any() and not graph["rel_edges"][1, :, 2:].any()
    for place in (0, 1):
        alone = data[place]["graph"]
        count = len(alone["attn_masks"])
        assert torch.equal(graph["rel_edges"][place, :, :count, :count], alone["rel_edges"])
        assert torch.equal(graph["flow_edges"][place, :count, :count], alone["flow_edges"])
    assert batch["captions"].tolist() == [[0, 3, 4, 5, 6, 7, 8, 9, 1], [0, 8, 10, 11, 1, 1, 1, 1, 1]]
    assert batch["caption_masks"].sum(1).tolist() == [9, 5]
    assert batch["index"].tolist() == [0, 1] and batch["names"] == ("im0_7", "im1_3")
    assert batch["nodes"][1].names == ("sun", "hot") and batch["nodes"][1].boxes[0] == (0, 0, 3, 3)


def test_which_node_a_word_speaks_of_where_all_samples_know(scene_graphs):
    data = data_set(scene_graphs)
    first, second = ({**data[place], "word_nodes": known} for place, known in ((0, [-1, 0, 2]), (1, [-1, 1])))
    assert collate_scene_graphs([first, second], pad_words=9)["word_nodes"].tolist() == [
        [-1, 0, 2, -1, -1, -1, -1, -1, -1],
        [-1, 1, -1, -1, -1, -1, -1, -1, -1],
    ]
    assert "word_nodes" not in collate_scene_graphs([first, {**data[1], "word_nodes": None}])
    # begin, a, big, red, dog, chases, the, cat, end, in the order dog, big, red, cat, chases of nodes
    assert data[0]["word_nodes"] == [-1, -1, 1, 2, 0, 4, -1, 3, -1]
    assert data_set(scene_graphs, max_words=4, max_nodes=2)[0]["word_nodes"] == [-1, -1, 1, -1]


def test_a_batch_goes_to_a_device_as_it_is(scene_graphs):
    from lightning_utilities.core.apply_func import apply_to_collection

    data = data_set(scene_graphs)
    batch = collate_scene_graphs([data[0], data[1]])
    moved = apply_to_collection(batch, torch.Tensor, torch.Tensor.double)
    assert moved["graph"]["attn_fts"].dtype == torch.float64 and moved["nodes"][0] is batch["nodes"][0]


def test_limits_cut_nodes_and_words(scene_graphs):
    sample = data_set(scene_graphs, max_nodes=3, max_words=4)[0]
    assert sample["nodes"].names == ("dog", "big", "red") and sample["nodes"].left_out == 2
    assert sample["caption"] == [0, 3, 4, 5]


def test_padding_as_published():
    numbers, meant = collate_captions([[0, 5, 1], [0, 1]], pad_words=5)
    assert numbers.tolist() == [[0, 5, 1, 1, 1], [0, 1, 1, 1, 1]] and meant.sum(1).tolist() == [3, 2]
    nodes = graph_nodes(AbstractGraph((GraphObject(0, "dog", (), (0, 0, 1, 1)),)))
    batch = collate_graphs([graph_inputs(nodes, np.ones(2), np.ones((1, 3)))] * 2, pad_nodes=10)
    assert batch["rel_edges"].shape == (2, 6, 10, 10) and batch["attn_fts"].shape == (2, 10, 3)
    assert batch["flow_edges"].sum().item() == 2


def test_a_graph_of_ones_own_needs_no_files():
    graph = AbstractGraph(
        (GraphObject(0, "dog", ("red",), (0, 0, 9, 9)), GraphObject(1, "cat", (), (5, 5, 20, 20))),
        (GraphRelation(0, "by", 1),),
    )
    nodes = graph_nodes(graph)
    inputs = graph_inputs(nodes, np.zeros(4), np.zeros((4, 3)))
    assert inputs["node_types"].tolist() == [0, 1, 0, 2] and inputs["rel_edges"].shape == (6, 4, 4)


def test_errors_name_image_and_region(scene_graphs):
    data = data_set(scene_graphs, inclusive=False)
    with pytest.raises(LookupError, match=r"image 'im0', box \(10, 20, 15, 26\).*inclusive"):
        data[0]
    regions = {**scene_graphs.REGIONS["im1"]}
    crowded = {**regions["3"]["objects"][0], "attributes": [str(number) for number in range(20)]}
    scene_graphs.write_json(scene_graphs.regions / "im1.json", {"3": {**regions["3"], "objects": [crowded]}})
    with pytest.raises(ValueError, match="image 'im1', region '3': object 'sun' has 20 attributes"):
        data_set(scene_graphs, max_nodes=30)[1]


def test_images_without_features_are_told_of_before_training(scene_graphs):
    np.save(scene_graphs.annotations / "public_split" / "trn_names.npy", np.array(["im0.jpg", "im7.jpg"]))
    with pytest.raises(ValueError, match=r"1 of 3 samples are of images without a feature .*'im1'"):
        data_set(scene_graphs)


def test_a_caption_needs_room_for_a_word(scene_graphs):
    with pytest.raises(ValueError, match="max_words=1 leaves no word"):
        data_set(scene_graphs, max_words=1)


def test_references_and_pictures(scene_graphs):
    data = data_set(scene_graphs)
    assert data.references() == {
        "im0_7": ["a big red dog chases the cat"], "im1_3": ["the hot sun"], "im0_8": ["a zebra"],
    }  # fmt: skip
    assert data.picture_name(1) == "im1.jpg"
