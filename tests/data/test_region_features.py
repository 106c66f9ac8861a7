"""Captions of new pictures: a batch of a picture and a graph that somebody drew on it."""

import numpy as np
import pytest
import torch

from lightning_xai.data.abstract_graph import AbstractGraph, GraphObject, GraphRelation
from lightning_xai.data.drawn_features import FEATURE_SIZE, DrawnFeatures, region_features
from lightning_xai.data.embedded_scene_graphs import EmbeddedSceneGraphsModule
from lightning_xai.data.region_features import RegionFeatures, boxes_inside, check_picture
from lightning_xai.data.scene import SceneRecipe
from lightning_xai.data.scene_graph_module import SceneGraphModule

DOG = GraphObject(5, "dog", ("big", "red"), (2, 3, 20, 30))
CAT = GraphObject(9, "cat", (), (10.5, 20, 40, 40))
GRAPH = AbstractGraph((DOG, CAT), (GraphRelation(5, "near", 9),))


class Corners(RegionFeatures):
    """Of a picture its size, of a box its corners; notes what it was asked for."""

    image_size, box_size = 2, 4

    def __init__(self):
        self.asked = []

    def features(self, picture, boxes):
        check_picture(picture)
        self.asked.append(len(boxes))
        return np.array(picture.shape[1:], np.float32), boxes_inside(boxes, tuple(picture.shape[1:]))


def picture(h=48, w=64):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, h, w), dtype=np.uint8))


def test_boxes_are_cut_at_the_edge_and_kept_otherwise():
    boxes = np.array([[-3, 2, 9, 70], [0, 0, 64, 48], [63.5, 1, 80, 2]])
    assert boxes_inside(boxes, (48, 64)).tolist() == [[0, 2, 9, 48], [0, 0, 64, 48], [63.5, 1, 64, 2]]
    assert boxes_inside(np.zeros((0, 4)), (48, 64)).shape == (0, 4)
    for box in ([64, 0, 70, 9], [5, 5, 5, 9], [9, 5, 8, 9], [0, -9, 5, 0], [np.nan, 0, 5, 5]):
        with pytest.raises(ValueError, match=r"\(x1, y1, x2, y2 in pixels\) has no area in the picture of 64 x 48"):
            boxes_inside(np.array([[0, 0, 5, 5], box]), (48, 64))


def test_drawn_features_are_those_of_the_training_data():
    boxes = np.array([DOG.box, CAT.box])
    image, found = DrawnFeatures().features(picture(), boxes)
    assert image.shape == (FEATURE_SIZE,) == (DrawnFeatures.image_size,) and DrawnFeatures.box_size == FEATURE_SIZE
    expected = region_features(picture().numpy(), np.vstack([[[0, 0, 64, 48]], boxes]))
    assert np.array_equal(image, expected[0]) and np.array_equal(found, expected[1:])
    with pytest.raises(ValueError, match="no area"):
        DrawnFeatures().features(picture(), np.array([[70, 0, 80, 5]]))
    with pytest.raises(ValueError, match="uint8"):
        DrawnFeatures().features(picture().float(), boxes)


def test_a_batch_of_the_embedded_world_is_the_one_that_it_trains_on():
    data = EmbeddedSceneGraphsModule(SceneRecipe(64, 64, max_size=36.0), n_train=8, n_val=8)
    for index in range(8):
        pixels = torch.from_numpy(data.picture("val", index)).permute(2, 0, 1)
        ours, theirs = data.graph_batch(pixels, data.val_set.graph(index)), data.collate([data.val_set[index]])
        assert all(torch.equal(ours["graph"][name], value) for name, value in theirs["graph"].items())
        assert torch.equal(ours["captions"], theirs["captions"]) and ours["phrases"] == theirs["phrases"]


def test_nodes_get_the_features_of_their_boxes(scene_graphs):
    new = Corners()
    data = SceneGraphModule(scene_graphs.root, new_pictures=new, max_nodes=4)
    batch = data.graph_batch(picture(), GRAPH)
    dog, cat = DOG.box, CAT.box
    assert batch["graph"]["attn_fts"][0].tolist() == [list(dog)] * 3 + [list(cat)]  # the relation did not fit
    assert batch["graph"]["mp_fts"].tolist() == [[48, 64]] and new.asked == [2]  # each box is computed once
    assert batch["names"] == ("new_0",) and batch["captions"].tolist() == [[0, 1]] and batch["nodes"][0].left_out == 1
    data.max_nodes = 10
    assert data.graph_batch(picture(), GRAPH)["graph"]["attn_fts"][0, 4].tolist() == [2, 3, 40, 40]


def test_without_a_way_to_compute_features(scene_graphs):
    with pytest.raises(TypeError, match=r"SceneGraphModule only has features of its own pictures: give it new_pict"):
        SceneGraphModule(scene_graphs.root).graph_batch(picture(), GRAPH)
    data = SceneGraphModule(scene_graphs.root, new_pictures=Corners())
    with pytest.raises(ValueError, match=r"box \(50, 0, 60, 9\).* no area in the picture of 30 x 20"):
        data.graph_batch(picture(20, 30), AbstractGraph((GraphObject(0, "sun", (), (50, 0, 60, 9)),)))
