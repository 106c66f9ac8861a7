"""Regions, samples and references in published files, and every way in which they can be wrong."""

import json

import numpy as np
import pytest

from lightning_xai.data.abstract_graph import GraphRelation
from lightning_xai.data.scene_graph_files import parse_region, read_references, read_region, read_samples, region_json

REGION = {
    "objects": [
        {"object_id": 5, "name": "dog", "attributes": ["big"], "x": 10, "y": 20, "w": 5, "h": 6},
        {"object_id": 9, "name": "cat", "attributes": [], "x": 40, "y": 10, "w": 8, "h": 8},
    ],
    "relationships": [{"relationship_id": 0, "subject_id": 5, "object_id": 9, "name": "near"}],
    "phrase": "a big dog near a cat",
}


def changed(**entry) -> dict:
    return {**REGION, "objects": [{**REGION["objects"][0], **entry}, REGION["objects"][1]]}


def test_boxes_end_at_or_behind_their_last_pixel():
    inclusive, exclusive = parse_region(REGION), parse_region(REGION, inclusive=False)
    assert inclusive.objects[0].box == (10, 20, 14, 25) and exclusive.objects[0].box == (10, 20, 15, 26)
    assert inclusive.relations == (GraphRelation(5, "near", 9),) and inclusive.phrase == "a big dog near a cat"


@pytest.mark.parametrize("inclusive", [True, False])
def test_a_graph_written_is_the_graph_read(inclusive):
    graph = parse_region(REGION, inclusive)
    assert region_json(graph, inclusive) == REGION
    assert parse_region(json.loads(json.dumps(region_json(graph, inclusive))), inclusive) == graph


def test_a_region_is_found_in_its_image(tmp_path):
    (tmp_path / "im.json").write_text(json.dumps({"7": REGION, "8": {"objects": []}}))
    assert read_region(tmp_path, "im", "7").counts() == (2, 1, 1)
    with pytest.raises(ValueError, match=r"im\.json: no region '9'; there are: '7', '8'"):
        read_region(tmp_path, "im", "9")
    with pytest.raises(ValueError, match=r"im\.json, region '8': the graph has no object"):
        read_region(tmp_path, "im", "8")
    with pytest.raises(FileNotFoundError, match=r"other\.json: no such file"):
        read_region(tmp_path, "other", "7")
    (tmp_path / "im.json").write_text("[")
    with pytest.raises(ValueError, match=r"im\.json: not a JSON file"):
        read_region(tmp_path, "im", "7")


@pytest.mark.parametrize(
    "region, reason",
    [
        (None, "it is null"),
        ({**REGION, "objects": {}}, '"objects" is {}, not a list'),
        (changed(x=1.5), "1.5 is no whole number"),
        (changed(w="wide"), "no object with object_id"),
        (changed(h=float("inf")), "no object with object_id"),
        (changed(object_id=[5]), r"told by a number or a name, not by \[5\]"),
        (changed(object_id=None), "told by a number or a name, not by None"),
        (changed(attributes="big"), "attributes must be a list"),
        ({**REGION, "objects": ["dog"]}, '"dog" is no object'),
        ({**REGION, "relationships": [{"name": "near"}]}, "is no relationship with subject_id"),
        ({**REGION, "relationships": [{"subject_id": {}, "object_id": 9}]}, "told by a number or a name, not by {}"),
        ({**REGION, "relationships": [{"subject_id": 5, "object_id": 4}]}, "is to object 4"),
        ({**REGION, "phrase": None}, '"phrase" is null'),
    ],
)
def test_malformed_regions(region, reason):
    with pytest.raises(ValueError, match=reason):
        parse_region(region)


@pytest.mark.parametrize("pairs", [[["a/b", "7"], ["c", "8"]], np.array([[b"a/b", b"7"], [b"c", b"8"]])])
def test_samples_are_pairs_of_names(tmp_path, pairs):
    np.save(tmp_path / "names.npy", np.array(pairs))
    assert read_samples(tmp_path / "names.npy") == [("a/b", "7"), ("c", "8")]


def test_numbers_are_names_too(tmp_path):
    np.save(tmp_path / "names.npy", np.array([[139, 7]]))
    assert read_samples(tmp_path / "names.npy") == [("139", "7")]
    np.save(tmp_path / "names.npy", np.array(["im"]))
    with pytest.raises(ValueError, match=r"shape \(1,\), but pairs"):
        read_samples(tmp_path / "names.npy")


def test_references(tmp_path):
    file = tmp_path / "cleaned.json"
    file.write_text(json.dumps({"im": {"7": {"phrase": "a dog"}, "8": {}}}))
    assert read_references(file, [("im", "7")]) == {"im_7": ["a dog"]}
    for sample in (("im", "9"), ("other", "7"), ("im", "8")):
        with pytest.raises(ValueError, match=r"cleaned\.json: no references .* of all 1 samples"):
            read_references(file, [sample])
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_references(tmp_path / "none.json", [])
