"""Fine-tuning class folders as a user types it: fit, the best checkpoint, validate, predict, and what goes wrong."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_xai.cli import main
from lightning_xai.nets.vit import build_vit

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}
SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "global_pool": "avg"}
NETWORK = "timm:vit_tiny_patch16_224"


def draw_folders(root: Path, train: int = 9, val: int = 5) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for name, colour in COLOURS.items():
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = random.integers(-40, 40, (24, 20, 3)) + np.array(colour)
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def config(tmp_path) -> Path:
    draw_folders(tmp_path / "pictures")
    settings = {
        "seed_everything": 1,
        "monitor": "val/acc1",
        "run_dir": str(tmp_path / "run"),
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 4,
            "accumulate_grad_batches": 2,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
        },
        "model": {
            "class_path": "lightning_xai.tasks.classification.ClassificationTask",
            "init_args": {
                "net": {
                    "class_path": "lightning_xai.nets.vit.build_vit",
                    "init_args": {"name": NETWORK, "arguments": SIZES | {"num_classes": 3, "drop_path_rate": 0.1}},
                },
                "lr": 2e-2,
                "warmup_epochs": 1,
                "mixup": 0.8,
                "cutmix": 1.0,
            },
        },
        "data": {
            "class_path": "lightning_xai.data.image_folder.ImageFolderModule",
            "init_args": {
                "root": str(tmp_path / "pictures"),
                "image_size": 16,
                "batch_size": 4,
                "num_workers": 0,
                "train_transform": {
                    "class_path": "lightning_xai.data.classification_transforms.FineTuneAugmentation",
                    "init_args": {"size": 16},
                },
            },
        },
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_fit_validate_and_predict(config, tmp_path, capsys):
    assert main(["fit", "--config", str(config)]) == 0
    run = tmp_path / "run"
    said = capsys.readouterr().out
    assert "effective batch size 8 = 4 images x 2 accumulated x 1 processes, lr 0.02" in said
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == max(lines, key=lambda line: line["test_acc1"])["epoch"]
    assert best["class_names"] == ["blue", "green", "red"]

    assert main(["validate", "--config", str(config), "--ckpt_path", "best"]) == 0
    assert f"top-1 {100 * max(line['test_acc1'] for line in lines):.2f} %" in capsys.readouterr().out
    assert main(["predict", "--config", str(config), "--ckpt_path", "best"]) == 0
    with open(run / "predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 15 and rows[3]["index"] == "3" and rows[3]["file"].endswith("val/blue/3.png")
    assert {row["class_1"] for row in rows} <= set(COLOURS)


def test_starting_from_pretrained_weights(config, tmp_path, capsys):
    encoder = build_vit(NETWORK, SIZES | {"global_pool": "token", "num_classes": 0}).net.state_dict()
    torch.save({"model": encoder}, tmp_path / "mae.pth")
    weights = ["--model.checkpoint", str(tmp_path / "mae.pth")]
    assert main(["fit", "--config", str(config), "--trainer.max_epochs", "2", *weights]) == 0
    with pytest.raises((SystemExit, ValueError), match="made a new head, which nothing has trained yet"):
        main(["validate", "--config", str(config), *weights])
    with pytest.raises(SystemExit, match=r"no file|does not exist"):
        main(["fit", "--config", str(config), "--model.checkpoint", "nowhere.pth"])
    capsys.readouterr()


STOPPER = """
import pytorch_lightning as pl

class StopAtBatch(pl.Callback):
    def __init__(self, epoch: int, batch: int):
        self.place = epoch, batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.place:
            raise KeyboardInterrupt
"""


def test_a_run_stopped_inside_an_epoch_ends_where_a_whole_one_does(config, tmp_path, monkeypatch, capsys):
    (tmp_path / "stop_at_batch.py").write_text(STOPPER)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["fit", "--config", str(config), "--trainer.max_epochs", "3", "--run_dir"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    stop = [
        "--trainer.callbacks+=stop_at_batch.StopAtBatch",
        "--trainer.callbacks.epoch=1",
        "--trainer.callbacks.batch=4",
    ]
    with pytest.raises(SystemExit):
        main([*words, str(tmp_path / "stopped"), *stop])
    assert main([*words, str(tmp_path / "stopped"), "--ckpt_path", "last"]) == 0
    ends = [torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("whole", "stopped")]
    for name, values in ends[0]["state_dict"].items():
        assert torch.equal(values, ends[1]["state_dict"][name]), name
    logs = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("whole", "stopped")]
    for ours, theirs in zip(*([json.loads(line) for line in lines] for lines in logs), strict=True):
        assert ours["test_acc1"] == theirs["test_acc1"]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-6)
    capsys.readouterr()


def test_the_published_recipe_says_its_batch(capsys):
    """4 processes x 64 images x 4 accumulated, a base rate of 5e-4: lr 2e-3."""
    text = (Path(__file__).parents[2] / "configs" / "egdd_vit_base.yaml").read_text()
    settings = yaml.safe_load(text)
    trainer, task = settings["trainer"], settings["model"]["init_args"]
    images = trainer["devices"] * trainer["accumulate_grad_batches"] * settings["data"]["init_args"]["batch_size"]
    assert images == 1024 and task["blr"] * images / 256 == pytest.approx(2e-3)
    assert (
        task["net"]["init_args"]["arguments"]["num_classes"] == 12 and task["checkpoint"] and task["load"] == "finetune"
    )
