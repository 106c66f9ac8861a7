"""`lightning-xai describe`, as a user types it, with tiny networks of random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_xai.cli import main
from lightning_xai.cli.describe import attributes_of, divided, stacked
from lightning_xai.cli.explained_regions import in_picture, seen_part
from lightning_xai.cli.training import TrainingCLI

CONFIGS = Path(__file__).parents[2] / "configs"
DETECTOR = {
    "extends": str(CONFIGS / "demo.yaml"),
    "model": {
        "class_path": "lightning_xai.tasks.detection.DetectionTask",
        "init_args": {
            "threshold": 0.01,
            "net": {
                "class_path": "lightning_xai.nets.deformable_detr.DeformableDETR",
                "init_args": {"hidden_dim": 32, "dim_feedforward": 32, "num_queries": 8, "two_stage": False},
            },
        },
    },
}
CAPTIONER = {
    "extends": str(CONFIGS / "demo_captions.yaml"),
    "model": {
        "class_path": "lightning_xai.tasks.captioning.CaptioningTask",
        "init_args": {
            "max_words": 7,
            "net": {
                "class_path": "lightning_xai.nets.asg_captioner.ASGCaptioner",
                "init_args": {"hidden_dim": 8},
            },
        },
    },
}
GRAPH = {
    "objects": [
        {"object_id": 3, "name": "dog", "attributes": ["black"], "x": 10, "y": 4, "w": 20, "h": 30},
        {"object_id": 8, "name": "cat", "attributes": [], "x": 50, "y": 8, "w": 30, "h": 30},
    ],
    "relationships": [{"relationship_id": 0, "subject_id": 8, "object_id": 3, "name": "beside"}],
    "phrase": "",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Configurations and checkpoints of random weights of a detector and a captioner."""
    place = tmp_path_factory.mktemp("describe")
    for name, config in (("detector", DETECTOR), ("captioner", CAPTIONER)):
        (place / f"{name}.yaml").write_text(yaml.safe_dump({"seed_everything": 3, **config}))
        cli = TrainingCLI(["--config", str(place / f"{name}.yaml")], run=False)
        content = {"state_dict": cli.model.state_dict()}
        if name == "captioner":
            content["words"] = list(cli.datamodule.vocabulary.words)
        torch.save(content, place / f"{name}.ckpt")
    return place


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 96, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture
def detector(folder):
    return ["--config", str(folder / "detector.yaml"), "--ckpt", str(folder / "detector.ckpt")]


@pytest.fixture
def captioner(folder):
    return ["--captioner", str(folder / "captioner.yaml"), "--captioner_ckpt", str(folder / "captioner.ckpt")]


def failing(words) -> str:
    """What the command says that ends with an error."""
    with pytest.raises(SystemExit) as error:
        main(["describe", *words])
    return str(error.value.code)


def test_regions_of_a_detector_are_captioned(detector, captioner, photo, tmp_path, capsys):
    run_dir = tmp_path / "run"
    asked = ["--method", "rollout", "--regions", "2", "--attributes", "2,0", "--run_dir", str(run_dir)]
    assert main(["describe", *detector, *captioner, "--image", str(photo), *asked]) == 0
    *explained, caption, picture, graph = capsys.readouterr().out.splitlines()
    assert all(line.startswith("query ") and line.endswith("of its relevance") for line in explained)
    assert [picture, graph] == [str(run_dir / "descriptions" / f"photo.{ending}") for ending in ("png", "json")]
    ((identity, region),) = json.loads(Path(graph).read_text()).items()
    objects = region["objects"]
    assert identity == "0" and [len(item["attributes"]) for item in objects] == [2, 0][: len(objects)]
    assert len(objects) == len(explained) and len(region["relationships"]) == len(objects) - 1
    assert all(0 <= o["x"] < o["x"] + o["w"] <= 96 and 0 <= o["y"] < o["y"] + o["h"] <= 48 for o in objects)
    assert caption.startswith(region["phrase"]) and region["phrase"] == region["captions"][0][0]
    assert np.asarray(Image.open(picture)).std() > 5
    # the graph that was written is captioned alike, and so is one of a person
    again = ["--graph", graph, "--image", str(photo), "--out", str(tmp_path / "again.json")]
    assert main(["describe", *captioner, *again]) == 0
    assert capsys.readouterr().out.splitlines()[0] == caption
    assert json.loads((tmp_path / "again.json").read_text())["0"]["objects"] == objects


def test_boxes_of_a_detector(detector, captioner, photo, tmp_path, capsys):
    asked = ["--regions_from", "boxes", "--regions", "1", "--target", "query:3", "--out", str(tmp_path / "out")]
    assert main(["describe", *detector, *captioner, "--image", str(photo), *asked]) == 0
    assert capsys.readouterr().out.startswith("query 3: ")
    (item,) = json.loads((tmp_path / "out.json").read_text())["0"]["objects"]
    assert main(["explain", *detector, "--input", str(photo), "--target", "query:3", "--out", str(tmp_path / "e")]) == 0
    with np.load(tmp_path / "e.npz") as found:
        expected = np.clip(found["boxes"][0], 0, [96, 48, 96, 48]).round()
    np.testing.assert_array_equal([item["x"], item["y"], item["x"] + item["w"], item["y"] + item["h"]], expected)


def test_a_graph_of_a_person_with_several_sentences(captioner, photo, tmp_path, capsys):
    file = tmp_path / "graphs.json"
    file.write_text(json.dumps({"a": GRAPH, "b": {**GRAPH, "relationships": []}}))
    beam = ["--captioner.model.beam_width", "3", "--captioner.model.sentences=2", "--out", str(tmp_path / "out.png")]
    assert main(["describe", *captioner, "--graph", str(file), "--region", "a", "--image", str(photo), *beam]) == 0
    lines = capsys.readouterr().out.splitlines()
    region = json.loads((tmp_path / "out.json").read_text())["0"]
    assert len(lines) == 4 and len(region["captions"]) == 2
    assert region["relationships"] == GRAPH["relationships"]
    assert [item["name"] for item in region["objects"]] == ["dog", "cat"]


def test_a_picture_of_the_validation_data(detector, captioner, tmp_path, capsys):
    sizes = ["--data.n_val", "3", "--regions_from", "boxes", "--out", str(tmp_path / "out")]
    assert main(["describe", *detector, *captioner, "--index", "2", *sizes]) == 0
    caption = capsys.readouterr().out.splitlines()[-3]
    words = ["--graph", str(tmp_path / "out.json"), "--image", str(tmp_path / "out.input.png")]
    assert main(["describe", *captioner, *words, "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == caption
    assert "the samples 0 to 2" in failing([*detector, *captioner, "--index", "3", *sizes])
    assert "give --image FILE" in failing([*captioner, "--index", "0", *words[:2]])


def test_a_graph_that_is_too_large_says_what_is_left_out(captioner, photo, tmp_path, capsys):
    many = [{**GRAPH["objects"][0], "object_id": number} for number in range(6)]
    (tmp_path / "g.json").write_text(json.dumps({**GRAPH, "objects": many, "relationships": []}))
    words = ["--graph", str(tmp_path / "g.json"), "--image", str(photo), "--out", str(tmp_path / "o")]
    assert main(["describe", *captioner, *words]) == 0
    assert capsys.readouterr().out.startswith("the graph has 2 nodes more than the 10 that the captioner reads\n")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--regions", "0"], "--regions 0 must be at least 1"),
        (["--relations", "-1"], "--relations -1 must be at least 0"),
        (["--attributes", "two"], "--attributes 'two' must be a number such as 1, or one for each region"),
        (["--attributes", "1,1,1,1"], "--attributes '1,1,1,1' is for 4 regions, but --regions 3"),
        (["--region", "a"], "--region 'a' is one of the graphs of --graph FILE, which is not given"),
        (["--method", "magic"], "no explanation method 'magic'"),
        (["--target", "class:cow"], "no class 'cow'"),
        (["--graph", "g.json"], "--graph g.json is captioned as it is: leave out the network that is explained"),
    ],
)
def test_what_cannot_be_asked_for(detector, captioner, photo, words, said):
    assert said in failing([*detector, *captioner, "--image", str(photo), *words])


def test_faulty_graphs_captioners_and_pictures(detector, captioner, folder, photo, tmp_path):
    with_graph = [*captioner, "--image", str(photo), "--graph"]
    assert "what shall be described?" in failing([*captioner, "--image", str(photo)])
    assert "none.json: no such file" in failing([*with_graph, str(tmp_path / "none.json")])
    file = tmp_path / "g.json"
    for content, said in (
        ({"objects": []}, "the graph has no object"),
        ({"a": GRAPH, "b": GRAPH}, "holds 2 graphs: choose one by --region, of a, b"),
        (
            {**GRAPH, "relationships": [{"subject_id": 1, "object_id": 3, "name": "on"}]},
            "is to object 1, but the graph",
        ),
        ({**GRAPH, "objects": [{**GRAPH["objects"][0], "x": 400}], "relationships": []}, "no area in the picture"),
    ):
        file.write_text(json.dumps(content))
        assert said in failing([*with_graph, str(file)])
    file.write_text(json.dumps({"a": GRAPH}))
    assert "has no region 'b'; there are: a" in failing([*with_graph, str(file), "--region", "b"])
    assert "g.json (" in (said := failing([*captioner, "--graph", str(file), "--image", str(file)]))
    assert "no picture of a known format" in said
    other = torch.load(folder / "captioner.ckpt", weights_only=True)
    other["words"][5] = "zebra"
    torch.save(other, tmp_path / "other.ckpt")
    words = ["--captioner", str(folder / "captioner.yaml"), "--captioner_ckpt", str(tmp_path / "other.ckpt")]
    assert "trained with other words ('zebra'" in failing([*words, "--graph", str(file), "--image", str(photo)])
    swapped = ["--captioner", str(folder / "detector.yaml"), "--captioner_ckpt", str(folder / "detector.ckpt")]
    assert "a captioner of scene graphs is CaptioningTask" in failing(
        [*swapped, "--graph", str(file), "--image", str(photo)]
    )


def test_options_and_numbers():
    assert divided(["--config", "a", "--captioner.data.root", "b", "--captioner.model.x=1", "--model.y", "2"]) == (
        ["--config", "a", "--model.y", "2"],
        ["--data.root", "b", "--model.x=1"],
    )
    assert attributes_of("2", 3) == [2, 2, 2] and attributes_of("2, 1", 3) == [2, 1, 0]
    assert stacked([np.zeros((2, 3, 3), np.uint8), np.zeros((1, 5, 3), np.uint8)])[:, 3:].tolist() == [
        [[255] * 3] * 2,
        [[255] * 3] * 2,
        [[0] * 3] * 2,
    ]


def test_boxes_of_what_is_seen_are_laid_on_the_picture():
    # the middle square of a picture of 100 x 200, seen as 50 x 50
    assert in_picture((0, 0, 50, 50), (50, 50), (50.0, 0.0, 150.0, 100.0), (100, 200)) == (50, 0, 150, 100)
    assert in_picture((10, 20, 15, 40), (50, 50), (50.0, 0.0, 150.0, 100.0), (100, 200)) == (70, 40, 80, 80)
    # beyond the picture's edge, and smaller than a pixel
    assert in_picture((-9, 3, 1, 99), (10, 10), (0.0, 0.0, 4.0, 4.0), (4, 4)) == (0, 1, 1, 4)
    assert in_picture((9.9, 9.9, 9.95, 9.95), (10, 10), (0.0, 0.0, 4.0, 4.0), (4, 4)) == (3, 3, 4, 4)

    class Module:
        evaluation_transform = staticmethod(lambda image, target: (image, target))

    assert seen_part(Module(), (8, 9), (8, 9)) == (0.0, 0.0, 9.0, 8.0)
    with pytest.raises(TypeError, match="which part of a picture the network sees"):
        seen_part(Module(), (8, 9), (4, 4))
