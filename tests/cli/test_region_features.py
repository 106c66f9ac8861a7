"""region-features, as a user types it, and the captioner on what it wrote."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model

from lightning_xai.cli import main
from lightning_xai.data.abstract_graph import graph_nodes
from lightning_xai.data.embedded_scene_graphs import EmbeddedSceneGraphsModule
from lightning_xai.data.picture_file import decode_picture, read_bytes
from lightning_xai.data.scene import SceneRecipe
from lightning_xai.data.scene_graph_files import read_region, region_json
from lightning_xai.data.scene_graph_module import SceneGraphModule
from lightning_xai.data.torchvision_features import TorchvisionFeatures

pytest.importorskip("h5py")
ROOT = Path(__file__).parents[2]
RESNET, DETECTOR = "resnet18", "fasterrcnn_mobilenet_v3_large_320_fpn"
NAMES = {"image_feature_name": f"torchvision.{RESNET}", "box_feature_name": f"torchvision.{DETECTOR}"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(get_model(RESNET, weights=None).state_dict(), folder / "image.pth")
    torch.save(get_model(DETECTOR, weights=None, weights_backbone=None).state_dict(), folder / "box.pth")
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Six pictures p0.jpg, p1.png, ... with graphs of one region each, p0 with two."""
    folder = tmp_path_factory.mktemp("drawn")
    world = EmbeddedSceneGraphsModule(SceneRecipe(64, 64, max_size=36.0), n_train=8).dataset("train")
    for kind in ("images", "graphs"):
        (folder / kind).mkdir()
    for number in range(6):
        Image.fromarray(world.picture(number)).save(folder / "images" / f"p{number}.{('jpg', 'png')[number % 2]}")
        graphs = [world.graph(number, epoch) for epoch in range(2 if number == 0 else 1)]
        regions = {f"r{place}": region_json(graph) for place, graph in enumerate(graphs)}
        (folder / "graphs" / f"p{number}.json").write_text(json.dumps(regions))
    return folder


@pytest.fixture
def data(drawn, tmp_path):
    """A copy of the pictures and graphs, to be changed."""
    shutil.copytree(drawn, tmp_path / "data")
    return tmp_path / "data"


def words(data, weights, root, *more):
    return [
        *("region-features", "--images", str(data / "images"), "--graphs", str(data / "graphs"), "--out", str(root)),
        *("--image_weights", str(weights / "image.pth"), "--box_weights", str(weights / "box.pth"), "--device", "cpu"),
        *("--image_network", RESNET, "--box_network", DETECTOR, "--short_side", "64", "--split", "trn", *more),
    ]


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words(*arguments))
    capsys.readouterr()
    sentence = str(ended.value.code)
    assert sentence.startswith("lightning-xai region-features: ") and "\n" not in sentence
    return sentence


def module(root, **arguments):
    return SceneGraphModule(root, **{**NAMES, "batch_size": 2, "num_workers": 0, **arguments})


def test_the_captioner_trains_on_what_is_written(drawn, weights, tmp_path, capsys):
    root = tmp_path / "root"
    main(words(drawn, weights, root, "--vocabulary", "build"))
    for split in ("val", "tst"):  # the same features serve other splits
        main([*words(drawn, weights, root), "--split", split])
    said = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("computed now: features of 6 pictures and ") for line in said) == 1
    assert sum(line == "computed now: features of 0 pictures and 0 boxes" for line in said) == 2
    command = shlex.split(said[-1])
    assert command[:4] == ["lightning-xai", "fit", "--config", "configs/ega_new_pictures.yaml"]
    command[3] = str(ROOT / command[3])
    small = ["--model.net.hidden_dim", "8", "--data.batch_size", "4", "--data.num_workers", "0", "--model.max_words"]
    small += ["6", "--run_dir", str(tmp_path / "run"), "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    main([*command[1:], *small, "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"])
    (line,) = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert {"train_loss", "test_loss", "test_BLEU-4"} <= set(json.loads(line))


def same(features, others):
    np.testing.assert_allclose(features, others, rtol=0, atol=1e-4 * float(others.abs().max()))


@pytest.mark.parametrize("boxes", ["inclusive", "exclusive"])
def test_every_node_has_the_feature_of_its_box(drawn, weights, tmp_path, monkeypatch, boxes):
    monkeypatch.setattr(TorchvisionFeatures, "box_features", lambda self, picture, boxes: boxes)  # a known answer
    monkeypatch.setattr(TorchvisionFeatures, "image_features", lambda self, picture: np.array(picture.shape))
    main(words(drawn, weights, tmp_path, "--vocabulary", "build", "--boxes", boxes))
    stored = module(tmp_path, val_split="trn", boxes=boxes)
    related = 0
    for index in range(7):
        sample, nodes = stored.val_set[index]["graph"], stored.val_set[index]["nodes"]
        graph = read_region(drawn / "graphs", *stored.val_set.samples[index], inclusive=boxes == "inclusive")
        last = 1 if boxes == "inclusive" else 0
        corners = [(x1, y1, x2 + last, y2 + last) for x1, y1, x2, y2 in graph_nodes(graph).boxes]
        assert sample["attn_fts"].tolist() == [list(box) for box in corners]
        assert sample["mp_fts"].tolist() == [3, 64, 64]
        related += 2 in nodes.types
    assert related


def test_new_pictures_are_seen_as_those_in_the_files(drawn, weights, tmp_path):
    main(words(drawn, weights, tmp_path, "--vocabulary", "build"))
    files = weights / "image.pth", weights / "box.pth", RESNET, DETECTOR
    stored = module(tmp_path, val_split="trn", new_pictures=TorchvisionFeatures(*files, 64, "cpu"))
    for index in (0, 1, 4):
        sample, (image_id, region) = stored.val_set[index], stored.val_set.samples[index]
        graph = read_region(drawn / "graphs", image_id, region, inclusive=False)
        file = next((drawn / "images").glob(f"{image_id}.*"))
        again = stored.graph_batch(decode_picture(read_bytes(file), file), graph)["graph"]
        same(sample["graph"]["attn_fts"], again["attn_fts"][0])
        same(sample["graph"]["mp_fts"], again["mp_fts"][0])
    stored.new_pictures = TorchvisionFeatures(*files, 96, "cpu")
    with pytest.raises(ValueError, match=r"short_side 64 \(image.pth\), not 96 .*; a captioner must read new pictures"):
        stored.graph_batch(torch.zeros(3, 9, 9, dtype=torch.uint8), graph)


def test_a_run_goes_on_where_it_ended(data, weights, tmp_path, capsys, monkeypatch):
    real, calls = TorchvisionFeatures.box_features, []

    def ends(self, picture, boxes):
        calls.append(len(boxes))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, picture, boxes)

    monkeypatch.setattr(TorchvisionFeatures, "box_features", ends)
    with pytest.raises(KeyboardInterrupt):
        main(words(data, weights, tmp_path))
    assert "6 of 6 pictures to compute" in capsys.readouterr().out
    main(words(data, weights, tmp_path))
    said = capsys.readouterr().out
    assert "3 of 6 pictures to compute" in said and "pictures/s" in said and "no vocabulary in" in said
    assert len(calls) == 4 + 3
    main(words(data, weights, tmp_path))
    assert "0 of 6 pictures to compute" in capsys.readouterr().out
    # a region more, then a picture more
    regions = json.loads((data / "graphs" / "p1.json").read_text())
    box = {"object_id": 1, "name": "x", "attributes": [], "x": 1, "y": 2, "w": 30, "h": 31}
    regions["more"] = {"objects": [box], "relationships": [], "phrase": ""}
    (data / "graphs" / "p1.json").write_text(json.dumps(regions))
    main(words(data, weights, tmp_path, "--relist"))
    assert "features of 1 pictures and 1 boxes" in capsys.readouterr().out
    shutil.copy(data / "graphs" / "p0.json", data / "graphs" / "p9.json")
    shutil.copy(data / "images" / "p0.jpg", data / "images" / "p9.jpg")
    main(words(data, weights, tmp_path))
    said = capsys.readouterr().out
    assert "is as listed in" in said and "1 other graphs are not in it (--relist takes them all)" in said


def test_a_list_can_be_made_anew(data, weights, tmp_path, capsys):
    main(words(data, weights, tmp_path))
    for kind, name in (("graphs", "json"), ("images", "jpg")):
        shutil.copy(data / kind / f"p0.{name}", data / kind / f"p9.{name}")
    main(words(data, weights, tmp_path, "--relist", "--vocabulary", "build"))
    assert "1 of 7 pictures to compute" in capsys.readouterr().out
    stored = module(tmp_path, val_split="trn")
    assert len(stored.val_set) == 9
    first, last = stored.val_set[0]["graph"], stored.val_set[7]["graph"]
    same(first["attn_fts"], last["attn_fts"])
    np.testing.assert_array_equal(first["mp_fts"], last["mp_fts"])


def test_published_lists_are_followed(drawn, weights, tmp_path, capsys):
    annotations = tmp_path / "annotation" / "controllable"
    for kind in ("public_split", "regionfiles"):
        (annotations / kind).mkdir(parents=True)
    np.save(annotations / "public_split" / "trn_names.npy", np.array(["p3.jpg", "p0.jpg"]))
    np.save(annotations / "regionfiles" / "trn_names.npy", np.array([["p0", "r1"], ["p3", "r0"]]))
    main(words(drawn, weights, tmp_path, "--vocabulary", "build"))
    said = capsys.readouterr().out
    assert "2 of 2 pictures to compute" in said and "4 other graphs are not in it" in said
    stored = module(tmp_path, val_split="trn")
    assert stored.val_set.samples == [("p0", "r1"), ("p3", "r0")] and stored.val_set[1]["region_id"] == "r0"
    assert stored.val_set.image_features.file_names == ("p3.jpg", "p0.jpg")


def test_other_weights_and_conventions_are_not_mixed(drawn, weights, tmp_path, capsys):
    main(words(drawn, weights, tmp_path))
    other = tmp_path / "other.pth"
    torch.save(get_model(RESNET, weights=None).state_dict(), other)
    assert "holds features with sha256" in refused(capsys, drawn, weights, tmp_path, "--image_weights", str(other))
    said = refused(capsys, drawn, weights, tmp_path, "--boxes", "exclusive")
    assert "holds features with boxes 'inclusive' (box.pth), not 'exclusive'" in said
    assert "short_side 64" in refused(capsys, drawn, weights, tmp_path, "--short_side", "128")
    origin = json.loads((tmp_path / "ordered_feature" / "MP" / f"torchvision.{RESNET}" / "features.json").read_text())
    assert origin["network"] == RESNET and origin["weights"] == "image.pth" and len(origin["sha256"]) == 64


def test_weights_are_asked_for(drawn, weights, tmp_path, capsys):
    both = ["region-features", "--images", str(drawn), "--graphs", str(drawn), "--out", str(tmp_path), "--split", "trn"]
    with pytest.raises(SystemExit) as ended:
        main(both)
    assert "no weights of resnet101: give image_weights a file" in str(ended.value.code)
    assert "'download' for torchvision's" in str(ended.value.code)
    said = refused(capsys, drawn, weights, tmp_path, "--box_weights", str(weights / "image.pth"))
    assert "does not fit the network: 'backbone." in said and "more are missing" in said
    main(words(drawn, weights, tmp_path))  # the weights that were refused are not remembered


def spoil(data, kind):
    """One fault among the six pictures, and what is said of it."""
    graph = data / "graphs" / "p3.json"
    regions = json.loads(graph.read_text())
    first = next(iter(regions.values()))
    if kind == "unreadable":
        (data / "images" / "p3.png").write_bytes(b"no picture")
        return r"p3.png: no picture of a known format"
    if kind == "truncated":  # the header is fine
        file = data / "images" / "p3.png"
        file.write_bytes(file.read_bytes()[:-400])
        return "p3.png ("
    if kind == "no picture":
        (data / "images" / "p3.png").unlink()
        return "p3.json: there is no picture of image 'p3'"
    if kind == "outside":
        first["objects"][0]["x"] = 64
        said = "p3.png: box (64, "
    elif kind == "no area":
        first["objects"][0]["w"] = 0
        said = "has no area in the picture of 64 x 64 pixels"
    else:
        first["objects"] = first["relationships"] = []
        said = "p3.json, region 'r0': the graph has no object"
    graph.write_text(json.dumps(regions))
    return said


@pytest.mark.parametrize("kind", ["unreadable", "truncated", "no picture", "outside", "no area", "no object"])
def test_faults_end_the_run_or_are_left_out(data, weights, tmp_path, capsys, kind):
    expected = spoil(data, kind)
    root = tmp_path / "root"
    said = refused(capsys, data, weights, root)
    assert expected in said and "repair that, or add --leave_out to do without it." in said
    assert not (root / "annotation").is_dir() or not list(root.rglob("*_names.npy"))
    main(words(data, weights, root, "--leave_out", "--vocabulary", "build"))
    printed = capsys.readouterr().out
    assert "left out: " in printed and expected in printed
    stored = module(root, val_split="trn").val_set
    assert {image for image, _ in stored.samples} == {"p0", "p1", "p2", "p4", "p5"} and len(stored) == 6
    assert all(len(stored[index]["graph"]["attn_masks"]) for index in range(6))


def test_two_faults_and_none_left(data, weights, tmp_path, capsys):
    spoil(data, "no picture"), (data / "graphs" / "p4.json").write_text("{}")
    said = refused(capsys, data, weights, tmp_path)
    assert "2 faults in split 'trn', the first: " in said and "p3.json" in said
    for file in (data / "graphs").iterdir():
        file.write_text("{}")
    said = refused(capsys, data, weights, tmp_path, "--leave_out")
    assert "6 faults" in said and "it has no region; repair that, nothing else is left." in said


def test_folders_and_ids(data, weights, tmp_path, capsys):
    (data / "graphs" / "p5.json").unlink()
    main(words(data, weights, tmp_path / "a"))
    assert "1 of 6 pictures have no graph and are left alone, such as" in capsys.readouterr().out
    shutil.copy(data / "images" / "p0.jpg", data / "images" / "p0.small.jpg")
    assert "both have the id 'p0'" in refused(capsys, data, weights, tmp_path / "b")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no picture in this folder" in refused(capsys, data, weights, tmp_path, "--images", str(empty))
    (data / "images" / "p0.small.jpg").unlink()
    assert "no <image id>.json in this folder" in refused(capsys, data, weights, tmp_path, "--graphs", str(empty))


def test_vocabularies(data, weights, tmp_path, capsys):
    main(words(data, weights, tmp_path / "a", "--vocabulary", "build", "--min_count", "2"))
    trained = tmp_path / "a" / "annotation" / "controllable" / "int2word.npy"
    assert "captions of them can be written" not in capsys.readouterr().out
    for file in (data / "graphs").iterdir():  # nobody wrote captions of new pictures
        regions = json.loads(file.read_text())
        file.write_text(json.dumps({name: {**region, "phrase": ""} for name, region in regions.items()}))
    said = refused(capsys, data, weights, tmp_path / "b", "--vocabulary", "build")
    assert "no region of split 'trn' has a phrase to build a vocabulary of" in said
    main(words(data, weights, tmp_path / "b", "--vocabulary", str(trained)))
    assert "7 regions have no phrase" in capsys.readouterr().out
    assert module(tmp_path / "b").vocabulary.words == module(tmp_path / "a").vocabulary.words
    more = tmp_path / "word2int.json"
    more.write_text(json.dumps({"<BOS>": 0, "<EOS>": 1, "<UNK>": 2, "zebra": 3}))
    said = refused(capsys, data, weights, tmp_path / "b", "--vocabulary", str(more))
    assert "has another vocabulary" in said


def test_words_of_what_is_left_out_are_not_learned_and_the_command_can_be_repeated(data, weights, tmp_path, capsys):
    file = data / "graphs" / "p1.json"
    regions = json.loads(file.read_text())
    (region,) = regions.values()
    region["objects"][0]["x"], region["phrase"] = 5000, "a zebra"  # outside, which is known from the picture alone
    file.write_text(json.dumps(regions))
    for _ in range(2):
        assert main(words(data, weights, tmp_path / "o", "--vocabulary", "build", "--leave_out")) == 0
        assert "zebra" not in (tmp_path / "o" / "annotation/controllable/word2int.json").read_text()
    capsys.readouterr()


def test_options_that_cannot_be(data, weights, tmp_path, capsys):
    root = tmp_path / "o"
    assert "--split 'a/b' is part of file names" in refused(capsys, data, weights, root, "--split", "a/b")
    assert "--min_count 0 must be at least 1" in refused(capsys, data, weights, root, "--min_count", "0")
    rare = refused(capsys, data, weights, root, "--vocabulary", "build", "--min_count", "99")
    assert "a phrase with words that come at least 99 times" in rare
    assert "no device 'cuda:77': there are" in refused(capsys, data, weights, root, "--device", "cuda:77")
    assert not root.exists()
    root.write_text("a file")
    assert f"{root}/ordered_feature" in refused(capsys, data, weights, root)
