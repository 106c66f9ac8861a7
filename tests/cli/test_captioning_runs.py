"""The commands with a captioner, as a user types them."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from lightning_xai.cli import main
from lightning_xai.data.node_features import write_array, write_box_features

CONFIG = Path(__file__).parents[2] / "configs" / "demo_captions.yaml"
SMALL = ["--model.net.hidden_dim", "8", "--data.n_val", "6", "--data.n_test", "5", "--model.max_words", "6"]


def test_fit_test_and_predict(tmp_path, capsys):
    options = ["--config", str(CONFIG), "--run_dir", str(tmp_path), "--trainer.enable_progress_bar", "false", *SMALL]
    sizes = ["--data.n_train", "16", "--data.batch_size", "8", "--trainer.max_epochs", "1", "--trainer.logger", "false"]
    main(["fit", *options, *sizes])
    said = capsys.readouterr().out
    assert "BLEU-4=" in said and "swap=" in said
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert {"train_loss", "test_loss", "test_BLEU-4", "test_CIDEr", "test_swap"} <= set(json.loads(line))
    assert len(list((tmp_path / "pictures" / "captions").rglob("*.png"))) == 3
    main(["test", *options, "--ckpt_path", "best"])
    said = capsys.readouterr().out
    assert "swap 0.0" in said and "gradient_x_input" in said
    methods = ["attention", "gradient_x_input", "occlusion", "random", "chance"]
    assert list(json.loads((tmp_path / "explanations.json").read_text())) == methods
    beams = ["--model.beam_width", "2", "--model.sentences", "2", "--model.metrics", "[bleu,graph_structure]"]
    parser = "{class_path: lightning_xai.evaluate.graph_structure.RuleParser}"
    main(["test", *options, *beams, "--model.parser", parser, "--model.word_methods", "[]", "--ckpt_path", "last"])
    assert list(json.loads((tmp_path / "explanations.json").read_text())) == ["attention", "random", "chance"]
    best, last = json.loads((tmp_path / "scores.json").read_text())
    assert (best["checkpoint"], last["checkpoint"]) == ("checkpoints/best.ckpt", "checkpoints/last.ckpt")
    assert "CIDEr" in best and {"G", "G_o", "G_a", "G_r", "Div-1/sentences", "grounding"} <= set(last)
    main(["predict", *options, "--ckpt_path", "last", "--model.beam_width", "2"])
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert list(captions) == [f"test00000{number}_0" for number in range(5)]
    assert all(len(entry) == 1 and isinstance(entry[0], str) for entry in captions.values())


def test_published_configurations(tmp_path):
    """Sizes and conventions of MSCOCO and Visual Genome."""
    from lightning_xai.cli.training import TrainingCLI

    for folder in (
        "annotation/controllable",
        "ordered_feature/MP/resnet101.ctrl",
        "ordered_feature/SA/X_101_32x8d/objrels",
    ):
        (tmp_path / folder).mkdir(parents=True)
    first = {}
    for name, vocabulary, words, epochs in (("coco", 10000, 25, 100), ("vg", 6000, 15, 20)):
        config = str(CONFIG.with_name(f"ega_{name}.yaml"))
        cli = TrainingCLI(["--config", config, "--data.root", str(tmp_path), "--trainer.accelerator", "cpu"], run=False)
        assert (cli.model.net.vocabulary, cli.model.max_words, cli.datamodule.max_words) == (vocabulary, words, words)
        assert cli.trainer.max_epochs == epochs and cli.datamodule.batch_size == 128 and cli.model.lr == 2e-4
        assert cli.datamodule.inclusive == (name == "coco")
        first[name] = cli.model.net.state_dict()
    assert first["coco"]["attn_encoder.layers.0.weight"].shape == (6, 512, 512)
    assert first["vg"]["attn_encoder.layers.0.weight"].shape == (6, 2048, 512)
    assert set(first["coco"]) - set(first["vg"]) == {
        f"attn_encoder.first_embedding.0.{part}" for part in ("weight", "bias")
    }


REGION = {
    "objects": [{"object_id": 1, "name": "sun", "attributes": ["hot"], "x": 0, "y": 0, "w": 4, "h": 4}],
    "relationships": [],
    "phrase": "the hot sun",
}


def published_files(root: Path, region: dict) -> list[str]:
    """Two images in the published layout, the region of the second as given; the options that train on them."""
    annotations, features = root / "annotation" / "controllable", root / "ordered_feature"
    write_array(annotations / "int2word.npy", np.array(["<BOS>", "<EOS>", "<UNK>", "the", "hot", "sun"]))
    for split in ("trn", "val"):
        write_array(annotations / "regionfiles" / f"{split}_names.npy", np.array([["im0", "7"], ["im1", "7"]]))
        write_array(annotations / "public_split" / f"{split}_names.npy", np.array(["im0.jpg", "im1.jpg"]))
        write_array(features / "MP" / "resnet101.ctrl" / f"{split}_ft.npy", np.ones((2, 5), np.float32))
    for image, content in (("im0", REGION), ("im1", region)):
        (annotations / "regionfiles" / f"{image}.json").write_text(json.dumps({"7": content}))
        boxes, found = np.array([[0, 0, 3, 3]]), np.ones((1, 6), np.float32)
        write_box_features(features / "SA" / "X_101_32x8d" / "objrels", image, boxes, found, (60, 80))
    config = CONFIG.with_name("ega_coco.yaml")
    options = {
        "config": config,
        "run_dir": root / "run",
        "data.root": root,
        "data.batch_size": 2,
        "monitor": "val/CIDEr",
    }
    options |= {"model.net.vocabulary": 6, "model.net.feature_dim": 6, "model.net.global_dim": 5}
    options |= {"model.net.hidden_dim": 8, "trainer.max_epochs": 1, "trainer.accelerator": "cpu"}
    quiet = {"trainer.logger": "false", "trainer.enable_progress_bar": "false"}
    return [word for name, value in {**options, **quiet}.items() for word in (f"--{name}", str(value))]


def changed(**entry) -> dict:
    return {**copy.deepcopy(REGION), "objects": [{**REGION["objects"][0], **entry}]}


CROWD = changed(attributes=[f"a{number}" for number in range(20)])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "region, max_nodes, sentence",
    [
        (
            {**REGION, "objects": []},
            10,
            r"im1\.json, region '7': the graph has no object; a caption needs at least one",
        ),
        (CROWD, 21, "image 'im1', region '7': object 'sun' has 20 attributes among the first 21 nodes; at most 19"),
        (changed(x=2), 10, r"im1\.jpg\.hdf5 has no feature of image 'im1', box \(2, 0, 5, 3\)"),
        (changed(x=0.5), 10, r"im1\.json, region '7': .* is no object with .*0\.5 is no whole number"),
    ],
    ids=["no object", "attributes", "no feature", "box"],
)
def test_bad_graphs_are_one_sentence(tmp_path, region, max_nodes, sentence, workers):
    pytest.importorskip("h5py")
    options = [*published_files(tmp_path, region), "--data.max_nodes", str(max_nodes)]
    with pytest.raises(SystemExit, match=rf"^lightning-xai: [^\n]*{sentence}[^\n]*$"):
        main(["fit", *options, "--data.num_workers", str(workers)])


def test_odd_graphs_are_trained_on(tmp_path, capsys):
    pytest.importorskip("h5py")
    objects = [{**REGION["objects"][0], "object_id": number} for number in range(12)]
    objects[0]["attributes"] = CROWD["objects"][0]["attributes"]  # of them the first nine fit
    options = published_files(tmp_path, {**REGION, "objects": objects, "phrase": "a zebra nobody knows"})
    main(["fit", *options, "--data.num_workers", "1"])
    assert "CIDEr=" in capsys.readouterr().out
