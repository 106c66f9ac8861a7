"""A small DETR, trained for a few steps on drawn scenes, and a test run over explanation methods, as a user types."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from lightning_xai.cli import main

SEGMENTATION = Path(__file__).parents[2] / "configs" / "detr_segmentation.yaml"
NET = {
    "num_classes": 6,
    "backbone": "timm:resnet10t",
    "backbone_args": {"channels": [8, 8, 16, 16], "stem_width": 8},
    "hidden_dim": 32,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "dim_feedforward": 32,
    "num_queries": 10,
}
QUIET = {"accelerator": "cpu", "num_sanity_val_steps": 0, "enable_progress_bar": False, "logger": False}
DATA = {
    "class_path": "lightning_xai.data.embedded_detection.EmbeddedDetectionModule",
    "init_args": {
        "recipe": {"height": 64, "width": 64, "max_size": 40},
        "n_train": 16,
        "n_val": 4,
        "n_test": 4,
        "batch_size": 8,
        "masks": True,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a finished run in `run`, and the project's segmentation run for its network in `measure.yaml`."""
    folder = tmp_path_factory.mktemp("explained")
    net = {"class_path": "lightning_xai.nets.detr.DETR", "init_args": NET}
    task = {"class_path": "lightning_xai.tasks.detection.DetectionTask", "init_args": {"net": net, "lr": 1e-3}}
    training = {"seed_everything": 1, "trainer": {**QUIET, "max_epochs": 2}, "model": task, "data": DATA}
    (folder / "train.yaml").write_text(yaml.safe_dump(training))
    measure = yaml.safe_load(SEGMENTATION.read_text())
    measure["trainer"], measure["data"] = QUIET, DATA
    measure["model"]["init_args"]["task"] = task | {"init_args": {"net": net, "threshold": 0.05}}
    (folder / "measure.yaml").write_text(yaml.safe_dump(measure, sort_keys=False))
    assert main(["fit", "--config", str(folder / "train.yaml"), "--run_dir", str(folder / "run")]) == 0
    return folder


def test_detr_is_trained_and_evaluated(folder, capsys):
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["train_loss"] for line in log]
    assert len(losses) == 2 and losses[1] < losses[0]
    run = ["--config", str(folder / "run" / "config.yaml")]
    assert main(["test", *run, "--ckpt_path", "last"]) == 0
    assert "AP50" in capsys.readouterr().out
    assert main(["predict", *run, "--ckpt_path", "last"]) == 0
    assert json.loads((folder / "run" / "detections.json").read_text())


def test_one_table_of_all_methods(folder, tmp_path, capsys):
    words = ["--config", str(folder / "measure.yaml"), "--run_dir", str(tmp_path)]
    assert main(["test", *words, "--ckpt_path", str(folder / "run" / "checkpoints" / "last.ckpt")]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("method"))
    configured = list(yaml.safe_load(SEGMENTATION.read_text())["model"]["init_args"]["methods"])
    assert [line.split()[0] for line in lines[start + 2 : start + 2 + len(configured)]] == configured
    assert lines[start].split()[1:4] == ["AP", "AP50", "AP75"]
    with (tmp_path / "explanations.csv").open(newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == configured
    assert list(json.loads((tmp_path / "explanations.json").read_text())) == configured


def test_some_methods_from_foreign_weights(folder, tmp_path, capsys):
    weights = ["--model.task.checkpoint", str(folder / "run" / "checkpoints" / "last.ckpt")]
    words = ["--config", str(folder / "measure.yaml"), "--run_dir", str(tmp_path), *weights]
    again = "generic_relevance:normalise=false"
    assert (
        main(["test", *words, "--method", "ours_no_lrp_no_norm", "--method=gradient_rollout", "--method", again]) == 0
    )
    table = json.loads((tmp_path / "explanations.json").read_text())
    assert list(table) == ["ours_no_lrp_no_norm", "gradient_rollout", again]
    assert table[again] == table["ours_no_lrp_no_norm"]


def test_bad_words_are_one_sentence(folder, tmp_path):
    words = ["--config", str(folder / "measure.yaml"), "--run_dir", str(tmp_path)]
    given = ["--ckpt_path", str(folder / "run" / "checkpoints" / "last.ckpt")]
    with pytest.raises(SystemExit, match=r"no weights: .*--model\.task\.checkpoint FILE"):
        main(["test", *words])
    with pytest.raises(
        SystemExit, match=r"no explanation method 'magic'; choose from raw_attention.*names ours_no_lrp, "
    ):
        main(["test", *words, *given, "--method", "magic"])
    with pytest.raises(SystemExit, match="--method needs the name of an explanation method"):
        main(["test", *words, *given, "--method"])
    with pytest.raises(SystemExit, match="--method belongs to `test` with a model that has explanation methods"):
        main(["test", "--config", str(folder / "run" / "config.yaml"), "--ckpt_path", "last", "--method", "random"])
