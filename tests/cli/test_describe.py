"""`lightning-xai describe`, as a user types it, with tiny networks of random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_xai.cli import main
from lightning_xai.cli.describe import attributes_of, divided
from lightning_xai.cli.description import stacked
from lightning_xai.cli.explained_regions import explained_regions, in_picture, repeated, seen_part
from lightning_xai.cli.training import TrainingCLI
from lightning_xai.data.evaluation_resize import CropResize
from lightning_xai.explain.explainable import Explained
from lightning_xai.explain.method import Method
from lightning_xai.explain.targets import Targets

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


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """What runs leave in the working folder goes with the test."""
    monkeypatch.chdir(tmp_path)


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


def test_what_is_read_is_not_written_over(detector, captioner, photo, tmp_path, capsys):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(GRAPH))
    pictures = {given: given.read_bytes() for given in (photo, file)}
    for out in (tmp_path, tmp_path / "mine", tmp_path / "photo.png"):
        words = ["--graph", str(file), "--image", str(photo), "--out", str(out)]
        assert "would be written over: give another place by --out" in failing([*captioner, *words])
    assert "would be written over" in failing([*detector, *captioner, "--image", str(photo), "--out", str(tmp_path)])
    assert {given: given.read_bytes() for given in pictures} == pictures
    assert main(["describe", *captioner, "--graph", str(file), "--image", str(photo)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"runs/captioner/descriptions/mine.{ending}" for ending in ("png", "json")
    ]


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
        (["--relations", "3"], "--relations 3 must be at least 0 and at most 2"),
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


def test_a_graph_is_captioned_as_it_is(captioner, photo):
    words = [*captioner, "--graph", "g.json", "--image", str(photo)]
    for more in (["--method", "rollout"], ["--regions", "2", "--relations", "0"], ["--model.threshold", "0.2"]):
        said = failing([*words, *more])
        assert said.endswith(f"captioned as it is: leave out {', '.join(w for w in more if w[:2] == '--')}") or (
            said.endswith("leave out --model.threshold, 0.2")
        )


def test_what_is_wrong_with_the_captioner_is_said_of_it_and_before_anything_is_explained(
    detector, captioner, folder, photo, monkeypatch
):
    monkeypatch.setattr("lightning_xai.cli.description.explained_regions", None)  # is not reached
    words = [*detector, "--image", str(photo), "--captioner", str(folder / "captioner.yaml")]
    assert "the captioner: no weights: give --captioner_ckpt RUN" in failing(words)
    assert "--captioner_ckpt 'none.ckpt': no such file" in failing([*words, "--captioner_ckpt", "none.ckpt"])
    other = ["--captioner_ckpt", str(folder / "detector.ckpt")]
    assert "--captioner_ckpt '" in (said := failing([*words, *other])) and "of another network" in said
    none = [*captioner, "--captioner.model.beam_width", "0"]
    assert "the captioner: beam_width=0 must be at least 1" in failing([*detector, "--image", str(photo), *none])


def test_nothing_that_was_found_is_lost(detector, captioner, photo, tmp_path, monkeypatch):
    def failing_caption(*arguments):
        raise ValueError("the captioner fell silent")

    monkeypatch.setattr("lightning_xai.cli.description.caption", failing_caption)
    words = [*detector, *captioner, "--image", str(photo), "--out", str(tmp_path / "o"), "--regions_from", "boxes"]
    with pytest.raises(ValueError, match="fell silent"):
        main(["describe", *words])
    assert json.loads((tmp_path / "o.json").read_text())["0"]["objects"] and (tmp_path / "o.png").is_file()


def test_where_files_go(captioner, photo, tmp_path):
    (tmp_path / "g.json").write_text(json.dumps(GRAPH))
    words = [*captioner, "--graph", str(tmp_path / "g.json"), "--image", str(photo), "--out"]
    (tmp_path / "folder").mkdir()
    assert main(["describe", *words, str(tmp_path / "folder")]) == 0
    assert sorted(file.name for file in (tmp_path / "folder").iterdir()) == ["g.json", "g.png"]
    assert failing([*words, str(photo / "x")]) in (
        f"lightning-xai describe: {photo}: File exists",
        f"lightning-xai describe: {photo}: Not a directory",
    )


def test_annotated_objects_of_a_picture_of_the_data(detector, captioner, photo, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_xai.tasks.detection_explained.MATCHING_IOU", 0.0)  # the weights are random
    words = [*detector, *captioner, "--data.n_val", "1", "--target", "truth", "--out", str(tmp_path / "o")]
    assert main(["describe", *words, "--index", "0", "--regions_from", "boxes"]) == 0
    assert json.loads((tmp_path / "o.json").read_text())["0"]["objects"]
    assert "no annotated objects; choose otherwise by --target" in failing([*words, "--image", str(photo)])


def test_a_captioner_cannot_be_explained_like_this(captioner, folder):
    words = ["--config", str(folder / "captioner.yaml"), "--ckpt", str(folder / "captioner.ckpt"), "--index", "0"]
    assert "CaptioningTask cannot be explained" in failing([*words, *captioner])


def test_several_detections_of_one_object_are_one():
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10], [2, 0, 10, 10]]).float()
    targets = Targets(torch.arange(5.0), torch.zeros(5, dtype=torch.long), {"query": torch.arange(5)})
    names = tuple("abcde")
    assert repeated(Explained(targets, names, torch.tensor([1, 1, 2, 1, 1]), boxes)) == {1: 0, 4: 0}
    assert repeated(Explained(targets, names, torch.zeros(5, dtype=torch.long))) == {}


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


class OnePatch(Method):
    """All relevance on one patch of 7 x 7."""

    needs_gradients = False

    def __call__(self, recording, targets):
        relevance = torch.zeros(len(targets), 1 + 49)
        relevance[:, 1 + 2 * 7 + 5] = 1.0  # row 2, column 5
        return {"image": relevance}


def test_a_region_of_a_cropped_picture_lies_where_it_is_in_the_whole_one(tmp_path):
    """A classifier sees the middle of a wide picture; the patch that it looked at shows the picture's only mark."""
    for number in range(2):
        (tmp_path / "data/val" / str(number)).mkdir(parents=True)
        Image.new("RGB", (56, 56)).save(tmp_path / "data/val" / str(number) / "black.png")
    net = {"class_path": "lightning_xai.nets.vit.build_vit", "init_args": {"name": "timm:vit_tiny_patch16_224"}}
    net["init_args"]["arguments"] = {"img_size": 112, "num_classes": 2, "depth": 1}
    config = {
        "trainer": {"accelerator": "cpu", "logger": False},
        "model": {"class_path": "lightning_xai.tasks.classification.ClassificationTask", "init_args": {"net": net}},
        "data": {
            "class_path": "lightning_xai.data.image_folder.ImageFolderModule",
            "init_args": {"root": str(tmp_path / "data"), "image_size": 112},
        },
    }
    (tmp_path / "vit.yaml").write_text(yaml.safe_dump(config))
    cli = TrainingCLI(["--config", str(tmp_path / "vit.yaml")], run=False)
    cli.model.eval()
    picture = torch.zeros(3, 200, 400, dtype=torch.uint8)
    found = explained_regions(cli, picture, ("one", OnePatch()), limit=1)
    ((x1, y1, x2, y2),) = found.boxes
    picture[:, y1:y2, x1:x2] = 255
    shown, _ = CropResize(112)(picture, {})
    marked = (shown[0] > 127).nonzero()
    (top, left), (bottom, right) = marked.min(0).values.tolist(), marked.max(0).values.tolist()
    # the patch's rows 32..48 and columns 80..96, which Otsu's threshold may widen where it is laid on pixels smoothly
    centre = ((left + right + 1) / 2, (top + bottom + 1) / 2)
    assert centre == pytest.approx((88, 40), abs=1.5)
    assert 10 <= right - left <= 32 and 10 <= bottom - top <= 32
