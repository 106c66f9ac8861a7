"""Which pictures and graphs belong together."""

import json

import numpy as np
import pytest
from PIL import Image

from lightning_xai.data.abstract_graph import AbstractGraph, GraphObject, GraphRelation, graph_nodes
from lightning_xai.data.graph_pictures import (
    graph_boxes,
    graph_ids,
    graph_picture,
    image_id_of,
    picture_size,
    pictures_by_id,
)
from lightning_xai.data.picture_file import UnreadablePicture

DOG = {"object_id": 5, "name": "dog", "attributes": ["big"], "x": 10, "y": 20, "w": 5, "h": 6}
CAT = {"object_id": 9, "name": "cat", "attributes": [], "x": 40, "y": 10, "w": 8, "h": 8}
CHASES = {"relationship_id": 0, "subject_id": 5, "object_id": 9, "name": "chases"}


def save(file, w=80, h=60):
    Image.fromarray(np.zeros((h, w, 3), np.uint8)).save(file)
    return file


def region(*objects, relationships=(), phrase="a dog"):
    return {"objects": list(objects), "relationships": list(relationships), "phrase": phrase}


def write(folder, image_id, **regions):
    (folder / f"{image_id}.json").write_text(json.dumps(regions))


def test_boxes_are_those_that_nodes_look_up():
    random = np.random.default_rng(0)
    for _ in range(20):
        corners = np.sort(random.integers(0, 50, (5, 2, 2)), axis=1)
        objects = [GraphObject(n % 4, "thing", ("a",), tuple(corners[n].ravel().tolist())) for n in range(5)]  # 0 twice
        relations = [GraphRelation(*random.integers(0, 4, 1).tolist(), "on", *random.integers(0, 4, 1).tolist())] * 2
        graphs = [AbstractGraph(tuple(objects), tuple(relations)), AbstractGraph(tuple(objects[:2]))]
        boxes = graph_boxes(graphs)
        needed = {box for graph in graphs for box in graph_nodes(graph, 100).boxes}
        assert set(map(tuple, boxes.tolist())) == needed and len(boxes) == len(needed)
    assert graph_boxes([]).shape == (0, 4)


def test_ids_are_file_names_before_the_first_dot(tmp_path):
    save(tmp_path / "a.old.jpg"), save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert pictures_by_id(tmp_path) == {"a": tmp_path / "a.old.jpg", "b": tmp_path / "b.png"}
    assert image_id_of("folder/a.old.jpg") == "a"
    save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.old\.jpg and .*a\.png both have the id 'a'"):
        pictures_by_id(tmp_path)


def test_folders_without_anything(tmp_path):
    with pytest.raises(FileNotFoundError, match="no picture in this folder"):
        pictures_by_id(tmp_path)
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        pictures_by_id(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no <image id>\.json in this folder"):
        graph_ids(tmp_path)


def test_a_picture_with_its_regions(tmp_path):
    pictures = {"a": save(tmp_path / "a.jpg")}
    write(tmp_path, "a", one=region(DOG, CAT, relationships=[CHASES]), two=region(CAT, phrase=""))
    picture, faults = graph_picture("a", tmp_path, pictures, inclusive=True)
    assert not faults and picture.regions == ("one", "two") and picture.phrases == ("a dog", "")
    assert picture.boxes.tolist() == [[10, 20, 14, 25], [40, 10, 47, 17], [10, 10, 47, 25]]
    assert picture.shown_boxes(picture.boxes)[0].tolist() == [10, 20, 15, 26]
    exclusive, _ = graph_picture("a", tmp_path, pictures, inclusive=False, regions=["two"])
    assert exclusive.boxes.tolist() == [[40, 10, 48, 18]] and exclusive.regions == ("two",)
    assert exclusive.shown_boxes(exclusive.boxes).tolist() == picture.shown_boxes(picture.boxes)[1:2].tolist()


def test_faults_are_sentences_and_leave_the_rest(tmp_path):
    pictures = {name: save(tmp_path / f"{name}.jpg") for name in "abc"}
    write(tmp_path, "a", good=region(DOG), empty=region(), lost=region(DOG, relationships=[CHASES]))
    picture, faults = graph_picture("a", tmp_path, pictures, True, ["good", "empty", "lost", "none"])
    assert picture.regions == ("good",) and len(faults) == 3
    assert "a.json, region 'empty': the graph has no object" in faults[0]
    assert "region 'lost': the relation 'chases' is to object 9" in faults[1]
    assert "region 'none': there is no such region" in faults[2]
    write(tmp_path, "b")
    (tmp_path / "c.json").write_text("{")
    assert graph_picture("b", tmp_path, pictures, True) == (None, [f"{tmp_path / 'b.json'}: it has no region"])
    assert "c.json: not a JSON file" in graph_picture("c", tmp_path, pictures, True)[1][0]
    write(tmp_path, "d", good=region(DOG))
    none, (fault,) = graph_picture("d", tmp_path, pictures, True)
    assert none is None and fault.endswith("d.json: there is no picture of image 'd'")


def test_boxes_outside_are_found_by_the_header_alone(tmp_path):
    pictures = {"a": save(tmp_path / "a.jpg", 80, 60)}
    assert picture_size(pictures["a"]) == (60, 80)
    over = {**DOG, "x": 70, "w": 30}
    write(tmp_path, "a", one=region(over))
    graph_picture("a", tmp_path, pictures, True)[0].check_boxes()  # a part of it is inside
    for wrong, said in ((({**DOG, "x": 80}), r"\(80, 20, 85, 26\)"), ({**DOG, "h": 0}, r"\(10, 20, 15, 20\)")):
        write(tmp_path, "a", one=region(wrong))
        with pytest.raises(ValueError, match=rf"box {said} .* no area in the picture of 80 x 60"):
            graph_picture("a", tmp_path, pictures, True)[0].check_boxes()
    pictures["a"].write_bytes(b"no picture")
    with pytest.raises(UnreadablePicture, match=r"a\.jpg: no picture of a known format"):
        graph_picture("a", tmp_path, pictures, True)[0].check_boxes()
