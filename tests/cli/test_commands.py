"""Every command, as a user types it, on a tiny network and the embedded world."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_xai.cli import main
from lightning_xai.cli.training import TrainingCLI

# of `fit` and `test`; debug_loop.yaml belongs to a command of its own
CONFIGS = [file for file in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")) if file.stem != "debug_loop"]
TINY = {
    "seed_everything": 1,
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 2,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "logger": False,
        "callbacks": [
            {
                "class_path": "lightning_xai.callbacks.deformable_views.DeformableAttentionViews",
                "init_args": {"samples": 1, "detections": 1, "views": ["detections", "points"], "every_n_epochs": 5},
            }
        ],
    },
    "model": {
        "class_path": "lightning_xai.tasks.detection.DetectionTask",
        "init_args": {
            "net": {
                "class_path": "lightning_xai.nets.deformable_detr.DeformableDETR",
                "init_args": {
                    "num_classes": 6,
                    "backbone": "timm:resnet10t",
                    "backbone_args": {"channels": [8, 8, 16, 16], "stem_width": 8},
                    "hidden_dim": 32,
                    "num_heads": 2,
                    "num_feature_levels": 2,
                    "out_strides": [16, 32],
                    "num_encoder_layers": 1,
                    "num_decoder_layers": 2,
                    "dim_feedforward": 32,
                    "num_queries": 20,
                    "with_box_refine": True,
                },
            },
            "lr": 1e-3,
        },
    },
    "data": {
        "class_path": "lightning_xai.data.embedded_detection.EmbeddedDetectionModule",
        "init_args": {
            "recipe": {"height": 64, "width": 64, "max_size": 40},
            "n_train": 16,
            "n_val": 4,
            "n_test": 4,
            "batch_size": 8,
        },
    },
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert main(["fit", "--config", str(folder / "tiny.yaml"), "--run_dir", str(folder / "run")]) == 0
    return folder / "run"


def of(run: Path, checkpoint: bool = True) -> list[str]:
    given = ["--config", str(run / "config.yaml")]
    return [*given, "--ckpt_path", str(run / "checkpoints" / "last.ckpt")] if checkpoint else given


def assert_picture(file: Path) -> None:
    pixels = np.asarray(Image.open(file).convert("RGB"))
    assert min(pixels.shape[:2]) > 200 and pixels.std() > 5


def test_fit_leaves_everything_in_the_run_folder(trained):
    assert {"config.yaml", "log.jsonl", "checkpoints", "pictures"} <= {path.name for path in trained.iterdir()}
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    pictures = sorted(trained.glob("pictures/attention/**/*.png"))
    assert len(pictures) == 2  # two views after the last epoch, although every_n_epochs is 5
    for picture in pictures:
        assert_picture(picture)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_prints_the_table(trained, command, capsys):
    assert main([command, *of(trained)]) == 0
    assert "AP50" in capsys.readouterr().out


def test_predict_writes_detections(trained):
    assert main(["predict", *of(trained)]) == 0
    results = json.loads((trained / "detections.json").read_text())
    assert all(set(result) >= {"image_id", "category_id", "bbox", "score"} for result in results)


def test_plot_attention_of_a_sample_and_of_a_file(trained, tmp_path, capsys):
    options = ["--detections", "1", "--views", "points", "heat", "--out", str(tmp_path)]
    assert main(["plot", "attention", *of(trained), "--index", "2", *options]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines() if line.endswith(".png")]
    assert len(written) == 3
    for file in written:
        assert_picture(file)

    photo = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 96, 3), dtype=np.uint8)).save(photo)
    options += ["--part", "encoder", "--position", "20", "30", "--head", "1"]
    assert main(["plot", "attention", *of(trained), "--input", str(photo), *options]) == 0
    assert_picture(tmp_path / "encoder_level_0_x20_y30_heat.png")


def test_plot_data_and_log(trained, tmp_path):
    assert main(["plot", "data", *of(trained, checkpoint=False), "--samples", "2", "--out", str(tmp_path)]) == 0
    assert main(["plot", "log", str(trained), "--out", str(tmp_path / "log.png")]) == 0
    for name in ("samples.png", "box_density.png", "log.png"):
        assert_picture(tmp_path / name)


def test_intervene_tabulates(trained, tmp_path, capsys):
    table = tmp_path / "table"
    assert main(["intervene", *of(trained), "--by", "head", "--part", "decoder", "--out", str(table)]) == 0
    with table.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["muted"] for row in rows] == ["nothing", "head", "head"]
    assert "head 1" in capsys.readouterr().out


def test_a_run_may_end_inside_an_epoch(trained, tmp_path):
    short = ["--run_dir", str(tmp_path), "--trainer.max_epochs", "9", "--trainer.max_steps", "3"]
    assert main(["fit", *of(trained, checkpoint=False), *short]) == 0
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def test_last_and_best_are_found_in_the_run_folder(trained, capsys):
    for name in ("last", "best"):
        assert main(["validate", *of(trained, checkpoint=False), "--ckpt_path", name]) == 0
        assert "AP50" in capsys.readouterr().out


def test_weights_that_started_a_run_are_not_needed_later(trained, tmp_path):
    start = tmp_path / "start.ckpt"
    start.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes())
    run = tmp_path / "run"
    assert main(["fit", *of(trained, checkpoint=False), "--run_dir", str(run), "--model.checkpoint", str(start)]) == 0
    start.unlink()
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["checkpoint"] == str(start)
    assert main(["validate", *of(run)]) == 0
    assert main(["fit", *of(run, checkpoint=False), "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0


def test_bad_arguments_are_one_sentence(trained):
    with pytest.raises(SystemExit, match=r"^lightning-xai: .*gone\.pth"):
        main(["fit", *of(trained, checkpoint=False), "--model.checkpoint", "gone.pth"])
    with pytest.raises(SystemExit, match=r"^lightning-xai: two_stage=True needs"):
        wrong = ["--model.net.with_box_refine", "false", "--model.net.two_stage", "true"]
        main(["fit", *of(trained, checkpoint=False), *wrong])


def test_threads_of_a_run(trained):
    before = torch.get_num_threads()
    try:
        for threads in (before + 1, 1):
            TrainingCLI([*of(trained, checkpoint=False), "--num_threads", str(threads)], run=False)
            assert torch.get_num_threads() == threads
        TrainingCLI([*of(trained, checkpoint=False)], run=False)
        assert torch.get_num_threads() == 1
        with pytest.raises(SystemExit, match="--num_threads 0 must be at least 1"):
            TrainingCLI([*of(trained, checkpoint=False), "--num_threads", "0"], run=False)
    finally:
        torch.set_num_threads(before)


def test_weights_must_come_from_somewhere(trained):
    with pytest.raises(SystemExit, match="no weights"):
        main(["validate", *of(trained, checkpoint=False)])
    with pytest.raises(SystemExit, match="no weights"):
        main(["plot", "attention", *of(trained, checkpoint=False), "--index", "0"])
    with pytest.raises(SystemExit, match=r"gone\.ckpt.*no such file"):
        main(["intervene", *of(trained, checkpoint=False), "--ckpt_path", "gone.ckpt"])
    with pytest.raises(SystemExit, match="samples 0 to 3"):
        main(["plot", "attention", *of(trained), "--index", "4"])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
def test_every_configuration_is_valid(config, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(config), "--print_config"])
    assert stopped.value.code in (0, None), capsys.readouterr().err
    assert "class_path: lightning_xai.tasks." in capsys.readouterr().out
