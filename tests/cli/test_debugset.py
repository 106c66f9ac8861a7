"""The commands that pick images, on a tiny classifier and folders of pictures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_xai.cli import main
from lightning_xai.cli.debugset import WORDS
from lightning_xai.data.debugset_manifest import read_manifest
from lightning_xai.data.debugset_prompts import GENERATIONS
from lightning_xai.data.debugset_selection import SELECTIONS, ClassifiedImages, plan_selection
from lightning_xai.nets.vit import build_vit
from lightning_xai.tasks.classification import ClassificationTask

VIT = {
    "name": "timm:vit_tiny_patch16_224",
    "arguments": {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 2},
}
CONFIG = {
    "seed_everything": 1,
    "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "logger": False},
    "model": {
        "class_path": "lightning_xai.tasks.classification.ClassificationTask",
        "init_args": {"net": {"class_path": "lightning_xai.nets.vit.build_vit", "init_args": VIT}},
    },
    "data": {
        "class_path": "lightning_xai.data.image_folder.ImageFolderModule",
        "init_args": {"root": "", "image_size": 32, "eval_resize": "squash", "batch_size": 4, "num_workers": 0},
    },
}


def fill(folder, counts, seed):
    draw = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Folders of pictures, a checkpoint and a configuration."""
    work = tmp_path_factory.mktemp("work")
    for seed, (split, counts) in enumerate({"train": (1, 1), "pool": (7, 6), "discovery": (5, 5)}.items()):
        fill(work / split, dict(zip(("cat", "dog"), counts, strict=True)), seed)
    torch.manual_seed(0)
    task = ClassificationTask(build_vit(**VIT))
    head = task.net.net.head
    torch.nn.init.normal_(head.weight)
    torch.save({"state_dict": task.state_dict()}, work / "task.ckpt")
    with torch.no_grad():  # half of the images on each side, so that both classes have failures
        head.bias -= torch.from_numpy(judged(work, "discovery").logits).median(0).values
    torch.save({"state_dict": task.state_dict()}, work / "task.ckpt")
    config = {**CONFIG, "run_dir": str(work / "run")}
    config["data"]["init_args"]["root"] = str(work)
    (work / "config.yaml").write_text(yaml.safe_dump(config))
    return work


def judged(work, split):
    """What the checkpoint makes of a folder, image by image, without the project's data and prediction code."""
    task = ClassificationTask(build_vit(**VIT))
    task.load_state_dict(torch.load(work / "task.ckpt")["state_dict"])
    task.eval()
    paths, rows = sorted((work / split).rglob("*.png")), []
    for path in paths:
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        with torch.no_grad():
            rows.append(task.net((pixels - mean[:, None, None]) / deviation[:, None, None]))
    return ClassifiedImages(
        [str(path) for path in paths],
        np.array([["cat", "dog"].index(path.parent.name) for path in paths]),
        *(torch.cat([row[name] for row in rows]).numpy() for name in ("features", "logits")),
    )


def run(work, *words):
    return main(
        [
            "debugset",
            words[0],
            "--config",
            str(work / "config.yaml"),
            "--ckpt_path",
            str(work / "task.ckpt"),
            *words[1:],
        ]
    )


@pytest.mark.parametrize("strategy", ["S-Similarity", "s-active-learning"])
def test_a_classifier_picks(work, tmp_path, strategy, capsys):
    pool, discovery = ["--pool", str(work / "pool")], ["--discovery", str(work / "discovery")]
    given = pool + (discovery if strategy == "S-Similarity" else [])
    assert run(work, strategy, *given, "--count", "4", "--out", str(tmp_path / "set")) == 0
    assert f"8 images of 2 classes: {tmp_path / 'set'}" in capsys.readouterr().out
    name = {"S-Similarity": strategy, "s-active-learning": "S-Active-Learning"}[strategy]
    expected = plan_selection(name, judged(work, "pool"), ["cat", "dog"], 4, 0, judged(work, "discovery"))
    written = read_manifest(tmp_path / "set")
    assert [(entry.path, entry.source) for entry in written] == [(entry.path, entry.source) for entry in expected]
    assert not any(entry.note for entry in written)
    assert [entry.score for entry in written] == pytest.approx([entry.score for entry in expected], rel=1e-4)
    for entry in written:
        assert (tmp_path / "set" / entry.path).read_bytes() == Path(entry.source).read_bytes()


def test_features_are_computed_once(work, tmp_path, monkeypatch):
    given = [
        "S-Active-Learning",
        "--pool",
        str(work / "pool"),
        "--count",
        "2",
        "--features",
        str(tmp_path / "features"),
    ]
    run(work, *given, "--out", str(tmp_path / "first"))
    (kept,) = (tmp_path / "features").iterdir()
    monkeypatch.setattr("pytorch_lightning.Trainer.predict", lambda *_, **__: pytest.fail("predicted again"))
    run(work, *given, "--out", str(tmp_path / "second"))
    assert (tmp_path / "first/manifest.jsonl").read_text() == (tmp_path / "second/manifest.jsonl").read_text()
    monkeypatch.undo()
    os.utime(work / "pool/cat/0.png", (1, 1))
    run(work, *given, "--out", str(tmp_path / "third"))
    run(work, *given, "--data.eval_resize", "crop", "--out", str(tmp_path / "fourth"))
    run(work, *given, "--data.batch_size", "3", "--out", str(tmp_path / "fifth"))
    assert len(list((tmp_path / "features").iterdir())) == 3 and kept.is_file()


def test_failures_are_gathered(work, tmp_path, capsys):
    run(work, "failures", "--discovery", str(work / "discovery"), "--out", str(tmp_path / "failures"))
    seen = judged(work, "discovery")
    wrong = {
        path for path, row, label in zip(seen.paths, seen.logits, seen.labels, strict=True) if row.argmax() != label
    }
    entries = read_manifest(tmp_path / "failures")
    assert {entry.source for entry in entries} == wrong and wrong
    stems = [Path(entry.path).stem for entry in entries]
    assert len(set(stems)) == len(stems), "tasks call a picture by its name alone, whatever its class"
    assert f"{len(wrong)} of 10 images are misclassified" in capsys.readouterr().out


def test_chance_needs_no_classifier(work, tmp_path, capsys):
    words = ["debugset", "S-Random", "--pool", str(work / "pool"), "--count", "7", "--files", "symlink"]
    assert main([*words, "--out", str(tmp_path / "a"), "--seed", "5"]) == 0
    assert "dog: 6 of 7 images, there are no more candidates" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "b"), "--seed", "5"]) == 0
    assert (tmp_path / "a/manifest.jsonl").read_text() == (tmp_path / "b/manifest.jsonl").read_text()
    assert len(list((tmp_path / "a/dog").iterdir())) == 6


def test_two_processes_pick_what_one_does(work, tmp_path):
    given = ["--pool", str(work / "pool"), "--discovery", str(work / "discovery"), "--count", "4"]
    run(work, "S-Similarity", *given, "--features", str(tmp_path / "one"), "--out", str(tmp_path / "alone"))
    words = [sys.executable, "-m", "lightning_xai", "debugset", "S-Similarity", "--config", str(work / "config.yaml")]
    words += ["--ckpt_path", str(work / "task.ckpt"), *given, "--features", str(tmp_path / "two")]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--out", str(tmp_path / "together")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("8 images of 2 classes") == 1
    one, two = (read_manifest(tmp_path / name) for name in ("alone", "together"))
    assert [entry.source for entry in one] == [entry.source for entry in two]
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == sorted(
        file.name for file in (tmp_path / "two").iterdir()
    )
    for file in (tmp_path / "one").iterdir():
        with np.load(file) as alone, np.load(tmp_path / "two" / file.name) as together:
            assert alone["index"].tolist() == together["index"].tolist() == list(range(len(alone["index"])))
            assert np.allclose(alone["features"], together["features"], atol=1e-5)


def test_an_unreadable_candidate_is_left_out(work, tmp_path, capsys):
    fill(tmp_path / "pool", {"cat": 4, "dog": 120}, 9)
    (tmp_path / "pool/cat/2.png").write_bytes(b"no picture")
    run(work, "S-Active-Learning", "--pool", str(tmp_path / "pool"), "--count", "9", "--out", str(tmp_path / "set"))
    assert "1 pictures cannot be read and are left out" in capsys.readouterr().err
    (tmp_path / "pool/cat/0.png").write_bytes(b"no picture")  # more than a hundredth, as the data's own option allows
    words = ["S-Active-Learning", "--pool", str(tmp_path / "pool"), "--count", "9", "--out"]
    with pytest.raises(SystemExit, match=r"2 of 124 pictures .* max_bad_images allows 1"):
        run(work, *words, str(tmp_path / "fewer"))
    run(work, *words, str(tmp_path / "fewer"), "--data.max_bad_images", "2")
    assert len([entry for entry in read_manifest(tmp_path / "fewer") if entry.class_name == "cat"]) == 2
    cats = [entry.source for entry in read_manifest(tmp_path / "set") if entry.class_name == "cat"]
    assert sorted(os.path.basename(source) for source in cats) == ["0.png", "1.png", "3.png"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["S-Similarity", "--pool", "{}/pool", "--discovery", "{}/pool"], "is both pool and discovery set"),
        (["S-Similarity", "--pool", "{}/none", "--discovery", "{}/pool"], "none: no such folder"),
        (["S-Active-Learning", "--pool", "{}"], "'discovery', 'pool', .* none of the 2 classes"),
        (
            ["S-Active-Learning", "--pool", "{}/pool", "--trainer.limit_predict_batches", "1"],
            "limit_predict_batches=1 would leave images of .*pool out",
        ),
    ],
)
def test_wrong_folders_are_named(work, tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        run(work, *(word.format(work) for word in words), "--out", str(tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_without_weights_nothing_is_picked(work, tmp_path):
    words = ["--config", str(work / "config.yaml"), "--pool", str(work / "pool"), "--out", str(tmp_path / "set")]
    with pytest.raises(SystemExit, match="no weights"):
        main(["debugset", "S-Active-Learning", *words])


def test_the_front_lists_what_there_is(capsys):
    assert main(["debugset"]) == 0
    text = capsys.readouterr().out
    for strategy in (
        "S-Random",
        "S-Similarity",
        "S-Active-Learning",
        "G-LLM",
        "G-TG",
        "G-LLM-prompt",
        "G-TG-human-prompt",
    ):
        assert f"  {strategy} " in text
    assert {*SELECTIONS, *GENERATIONS} <= WORDS.keys()
    assert main(["debugset", "S-Best"]) == 2
    assert "no strategy 'S-Best'; there are: S-Random" in capsys.readouterr().err


def test_manifests_do_not_depend_on_the_process(work, tmp_path):
    """Python's own hash differs from process to process; a manifest must not."""
    code = (
        "from lightning_xai.data.debugset_prompts import plan_prompts as p;"
        "print([e.seed for e in p('G-LLM', ['a', 'b'], 3)])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1 and json.loads(printed.pop())
