"""The published tests of explanations as a user types them: the files here, a small network and few pictures."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_xai.cli import main
from lightning_xai.data.object_mask import write_object_mask
from lightning_xai.evaluate.perturbation import FRACTIONS
from lightning_xai.nets.vit import build_vit

CONFIGS = Path(__file__).parents[2] / "configs"
CLASSES = ("dark", "light", "none")
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five pictures of two classes with a disc and its mask in `pictures`, and a small network's `weights.pth`."""
    folder = tmp_path_factory.mktemp("truth")
    random = np.random.default_rng(0)
    y, x = np.mgrid[:40, :60]
    for split, name, number in [("train", n, 0) for n in CLASSES] + [
        ("val", n, k) for n in CLASSES[:2] for k in range(3)
    ]:
        disc = (y - random.integers(10, 30)) ** 2 + (x - random.integers(10, 50)) ** 2 < 81
        pixels = random.integers(0, 100, (40, 60, 3), dtype=np.uint8) + np.uint8(120) * disc[..., None]
        place = folder / "pictures" / split / name / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
        mask = torch.from_numpy(disc.astype(np.int8))
        write_object_mask(folder / "pictures" / "masks" / split / name / f"{number}.png", mask)
    torch.manual_seed(0)
    weights = build_vit("timm:vit_tiny_patch16_224", arguments=TINY).net.state_dict()
    weights["head.weight"] *= 50  # so that pictures differ in their class
    torch.save(weights, folder / "weights.pth")
    return folder


def run(config: str, folder: Path, out: Path, *more: str) -> dict[str, dict[str, float]]:
    """The table of a test run of the project's configuration on the small network."""
    content = yaml.safe_load((CONFIGS / config).read_text())
    base = yaml.safe_load((CONFIGS / content.pop("extends")).read_text()) if "extends" in content else content
    task = base["model"]["init_args"]["task"]
    task["init_args"]["net"]["init_args"] = {"name": "timm:vit_tiny_patch16_224", "arguments": TINY}
    task["init_args"]["checkpoint"] = str(folder / "weights.pth")
    arguments = base["model"]["init_args"] | content["model"]["init_args"]
    data = base["data"]["init_args"] | content["data"]["init_args"]
    data |= {"root": str(folder / "pictures"), "image_size": 32, "eval_batch_size": 4, "num_workers": 0}
    content = {
        "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
        "model": {**base["model"], "init_args": arguments},
        "data": {**base["data"], "init_args": data},
    }
    (out / config).write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["test", "--config", str(out / config), "--run_dir", str(out / "run"), *more]) == 0
    with (out / "run" / "explanations.csv").open(newline="") as file:
        rows = [row["method"] for row in csv.DictReader(file)]
    table = json.loads((out / "run" / "explanations.json").read_text())
    assert rows == list(table)
    if not more:
        assert rows == list(arguments["methods"])
    return table


def test_perturbation(folder, tmp_path, capsys):
    table = run("vit_perturbation.yaml", folder, tmp_path)
    names = ["accuracy", "positive AUC 0..0.9", "negative AUC 0..0.9", "images"]
    assert all(list(row) == names for row in table.values())
    assert len({row["accuracy"] for row in table.values()}) == 1, "nothing is removed yet, whatever the method"
    assert all(row["images"] == 6 and 0 <= row[names[1]] <= 100 * FRACTIONS[-1] for row in table.values())
    assert "positive AUC 0..0.9" in capsys.readouterr().out


def test_segmentation(folder, tmp_path):
    table = run("vit_segmentation.yaml", folder, tmp_path, "--method", "centre", "--method", "random")
    assert list(table) == ["centre", "random"]
    assert all(list(row) == ["pixel_accuracy", "mIoU", "mAP", "mF1", "images"] for row in table.values())
    assert all(row["images"] == 6 for row in table.values())


def test_the_demo_is_measured_with_the_network_that_it_trains():
    trained, measured = (yaml.safe_load((CONFIGS / name).read_text()) for name in ("demo.yaml", "demo_truth.yaml"))
    net = measured["model"]["init_args"]["task"]["init_args"]["net"]
    assert net == trained["model"]["init_args"]["net"]
    assert measured["data"]["init_args"]["recipe"] == trained["data"]["init_args"]["recipe"]
