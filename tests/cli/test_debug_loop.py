import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lightning_xai.cli import main
from lightning_xai.cli.debug_loop import Loop
from lightning_xai.cli.debug_loop_options import parsed
from lightning_xai.data.debugset_manifest import Entry, read_manifest
from lightning_xai.data.trap_scene import TrapRecipe

SIZES = {"train": 96, "val": 12, "test": 24, "pool": 60, "discovery": 36, "heldout": 36, "unused": 6}
PROVIDERS = {
    "generator": {"class_path": "lightning_xai.data.embedded_generator.EmbeddedGenerator"},
    "lister": {"class_path": "lightning_xai.data.embedded_generator.EmbeddedConcepts"},
    "learner": {"class_path": "lightning_xai.data.embedded_generator.EmbeddedTokens"},
}


def written(folder: Path, loop: dict, data: dict | None = None) -> Path:
    """Configurations of a classifier of one block and of a loop with it; the loop's file."""
    world = {
        name: {"pictures": count, "strength": 0.9 * (name in ("train", "val", "test"))} for name, count in SIZES.items()
    }
    classifier = {
        "monitor": "val/acc1",
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0, "enable_model_summary": False},
        "model": {
            "class_path": "lightning_xai.tasks.classification.ClassificationTask",
            "init_args": {
                "net": {
                    "class_path": "lightning_xai.nets.small_vit.build_small_vit",
                    "init_args": {"num_classes": 6, "image_size": 48, "depth": 1, "embed_dim": 32, "channels": [8, 16]},
                },
                "lr": 2.0e-3,
                "warmup_epochs": 0.2,
                "layer_decay": 1.0,
            },
        },
        "data": data
        or {
            "class_path": "lightning_xai.data.embedded_classification.EmbeddedClassificationModule",
            "init_args": {"root": str(folder / "world"), "batch_size": 16, "eval_batch_size": 36, "world": world},
        },
    }
    (folder / "classifier.yaml").write_text(yaml.safe_dump(classifier))
    defaults = {
        "classifier": "classifier.yaml",
        "repair": {"model": {"init_args": {"lr": 1e-3}}},
        "count": 4,
        "seeds": [3],
    }
    file = folder / "loop.yaml"
    file.write_text(yaml.safe_dump({**defaults, "run_dir": str(folder / "run"), **loop}))
    return file


def loop(file: Path, *words: str) -> None:
    assert main(["debug-loop", "--config", str(file), *words]) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole loop with one strategy that selects and the one that needs everything."""
    folder = tmp_path_factory.mktemp("loop")
    file = written(folder, {**PROVIDERS, "strategies": ["s-similarity", "G-TG-human-prompt"], "pictures": 2})
    loop(file)
    return folder


def test_the_shipped_configuration_is_complete():
    file = Path(__file__).parents[2] / "configs/debug_loop.yaml"
    options, folder = parsed(["--config", str(file)])
    assert len(options.strategies) == 7 and len(options.seeds) >= 3
    assert (folder / options.classifier).is_file()
    assert options.generator is not None and options.lister is not None and options.learner is not None
    options, _ = parsed(["--config", str(file), "--pool", "unused", "--seeds", "[7]"])
    assert (options.pool, options.seeds) == ("unused", [7])


def test_the_table_has_every_strategy_and_number(run):
    table = json.loads((run / "run/debug_report.json").read_text())["strategies"]
    assert list(table) == ["before", "S-Similarity", "G-TG-human-prompt"]
    assert set(table["before"]) == {"test", "heldout", "energy"}
    for strategy in list(table)[1:]:
        assert set(table[strategy]) == {"test", "heldout", "repaired", "broken", "energy"}
        assert 0 < table[strategy]["energy"]["mean"] < 1
    assert "S-Similarity" in (run / "run/debug_report.txt").read_text()
    for name in ("debug_report.png", "debug_maps.png", "seed_3/failures.png"):
        assert np.array(Image.open(run / "run" / name)).ndim == 3
    classes = json.loads((run / "run/debug_report_classes.json").read_text())
    assert set(classes["S-Similarity"]["3"]["heldout"]["star"]) == {"before", "after", "repaired", "broken"}
    assert "NaN" not in (run / "run/debug_report_classes.json").read_text()


def test_debug_sets_have_what_was_asked_for(run):
    for strategy in ("S-Similarity", "G-TG-human-prompt"):
        entries = read_manifest(run / "run/seed_3" / strategy / "debugset")
        assert len(entries) == 24 and {entry.strategy for entry in entries} == {strategy}
    assert all(Path(entry.source).is_file() for entry in read_manifest(run / "run/seed_3/S-Similarity/debugset"))
    assert all("<" in entry.prompt for entry in entries)
    concepts = json.loads((run / "run/seed_3/people/concepts.json").read_text())
    assert concepts and set(next(iter(concepts.values()))) == {"valid", "confounded"}


def test_the_classifier_is_fine_tuned_on_both_sets_from_its_weights(run):
    config = yaml.safe_load((run / "run/seed_3/S-Similarity/config.yaml").read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert model["checkpoint"].endswith("seed_3/before/checkpoints/last.ckpt") and model["load"] == "continue"
    assert model["lr"] == 1e-3 and data["train"] == ["train", str(run / "run/seed_3/S-Similarity/debugset")]
    assert config["seed_everything"] == 3 and data["seed"] == 3


def test_debug_samples_are_drawn_before_and_after(run):
    for strategy in ("S-Similarity", "G-TG-human-prompt"):
        pictures = list((run / "run/seed_3" / strategy / "pictures/debug_set").rglob("*.png"))
        assert len(pictures) == 2 * 2


def test_a_loop_that_is_done_is_not_repeated(run, capsys):
    checkpoint = run / "run/seed_3/before/checkpoints/last.ckpt"
    before, report = checkpoint.stat().st_mtime_ns, (run / "run/debug_report.json").read_text()
    loop(run / "loop.yaml")
    assert checkpoint.stat().st_mtime_ns == before
    assert (run / "run/debug_report.json").read_text() == report
    assert "S-Similarity" in capsys.readouterr().out


def test_strategies_can_be_added_to_a_loop(run, capsys):
    checkpoint = run / "run/seed_3/before/checkpoints/last.ckpt"
    before = checkpoint.stat().st_mtime_ns
    loop(run / "loop.yaml", "--strategies", "[s-similarity, s-random]", "--debug_pictures", "1")
    assert checkpoint.stat().st_mtime_ns == before
    assert "seed 3, S-Random: test" in capsys.readouterr().out
    assert (run / "run/seed_3/S-Random/debugset/manifest.jsonl").is_file()


def test_another_configuration_does_not_go_on_in_this_folder(run):
    with pytest.raises(SystemExit, match="holds the run of another configuration"):
        loop(run / "loop.yaml", "--count", "5")


def test_any_folders_of_classes_will_do(run, tmp_path):
    """Without masks there is no share of relevance on objects; a classifier from elsewhere is not trained again."""
    for name in SIZES:
        shutil.copytree(run / "world" / name, tmp_path / "places" / name)
    data = {
        "class_path": "lightning_xai.data.image_folder.ImageFolderModule",
        "init_args": {
            "root": str(tmp_path / "places"),
            "class_names": list(TrapRecipe().shapes),  # as the classifier from elsewhere was trained
            "image_size": 48,
            "eval_resize": "squash",
            "batch_size": 16,
            "num_workers": 0,
        },
    }
    checkpoint = str(run / "run/seed_3/before/checkpoints/last.ckpt")
    options = {"strategies": ["S-Random"], "checkpoint": checkpoint, "mode": "debug_only", "debug_pictures": 0}
    loop(written(tmp_path, options, data))
    table = json.loads((tmp_path / "run/debug_report.json").read_text())["strategies"]
    assert set(table["S-Random"]) == {"test", "heldout", "repaired", "broken"}
    assert not (tmp_path / "run/seed_3/before").exists()
    config = yaml.safe_load((tmp_path / "run/seed_3/S-Random/config.yaml").read_text())
    assert config["data"]["init_args"]["train"] == [str(tmp_path / "run/seed_3/S-Random/debugset")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategies": ["G-LLM"]}, "G-LLM needs an image generator"),
        ({"strategies": ["G-LLM-prompt"], "generator": PROVIDERS["generator"]}, "needs a concept lister"),
        ({"strategies": ["G-TG"], "generator": PROVIDERS["generator"]}, "needs a token learner"),
        ({"strategies": ["S-Random", "S-Luck"]}, "S-Random, S-Similarity"),
        ({"strategies": ["S-Random"], "heldout": "pool"}, "heldout 'pool' and pool 'pool' must be different folders"),
        ({"strategies": ["S-Random"], "heldout": "../world/train"}, "heldout '../world/train' and train 'train' must"),
        ({"strategies": ["S-Random"], "test": "discovery/star/.."}, "and discovery 'discovery' must be different"),
        ({"strategies": ["S-Random"], "pool": "masks"}, "masks"),
        ({"strategies": ["S-Random"], "count": 0}, "count=0 should be at least 1"),
        ({"strategies": ["S-Random"], "pictures": 0}, "pictures=0 should be at least 1"),
        ({"strategies": ["S-Random"], "debug_pictures": -1}, "debug_pictures=-1 should be at least 0"),
        ({"strategies": ["G-TG-human-prompt"], "concepts": "said.json"}, "said.json': no such file"),
        ({"strategies": ["S-Random"], "seeds": [1, 1]}, "different numbers"),
        ({"strategies": ["S-Random"], "classifier": "missing.yaml"}, "no such file"),
        ({"strategies": ["S-Random"], "checkpoint": "missing.ckpt"}, "missing.ckpt"),
        ({"strategies": ["S-Random"], "method": {"a": {}, "b": {}}}, "one explanation method"),
        ({"strategies": ["S-Random"], "method": {"magic": {}}}, "no explanation method 'magic'"),
        ({"strategies": ["S-Random"], "pool": "pond"}, "pond"),
    ],
)
def test_what_cannot_work_stops_before_training(tmp_path, options, words):
    file = written(tmp_path, options)
    with pytest.raises(SystemExit, match=words):
        loop(file)
    assert not list(tmp_path.rglob("*.ckpt")) and not (tmp_path / "run/loop.sha256").exists()


def test_classes_with_too_few_images_are_named(tmp_path, capsys):
    short = Loop(*parsed(["--config", str(written(tmp_path, {"count": 2}))]))
    entries = [Entry(f"cat/{i}.png", "cat", "S-Similarity", i, source=f"{i}.png", note="at random") for i in range(2)]
    short._say_missing(3, "S-Similarity", entries, ["cat", "dog"])
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in said] == [["seed 3, S-Similarity", "dog"], ["seed 3, S-Similarity", "cat"]]
    assert "0 of 2 images" in said[0] and said[1].endswith("at random")


def test_data_that_are_no_folders_are_refused(tmp_path):
    data = {"class_path": "lightning_xai.data.embedded_detection.EmbeddedDetectionModule"}
    with pytest.raises(SystemExit, match="are of EmbeddedDetectionModule, but the loop needs folders of"):
        loop(written(tmp_path, {"strategies": ["S-Random"]}, data))


def test_a_misspelt_repair_stops_before_training(tmp_path, capsys):
    with pytest.raises(SystemExit):
        loop(written(tmp_path, {"strategies": ["S-Random"], "repair": {"trainer": {"max_epoch": 5}}}))
    assert "max_epoch" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt")) and not (tmp_path / "run/loop.sha256").exists()


def test_a_run_belongs_to_its_checkpoint_and_concepts(tmp_path):
    """Other contents under the same names are another configuration."""
    file = written(tmp_path, {"checkpoint": str(tmp_path / "a.ckpt"), "concepts": "a.json"})
    described = set()
    for name, content in (("a.json", "{}"), ("a.ckpt", "1"), ("a.ckpt", "22"), ("a.json", "{ }")):
        (tmp_path / name).write_text(content)
        if (tmp_path / "a.ckpt").exists():
            described.add(Loop(*parsed(["--config", str(file)]))._described())
    assert len(described) == 3
    assert Loop(*parsed(["--config", str(file)]))._described() in described
