"""Tables of scores."""

import csv
import json
import math
from types import SimpleNamespace

import pytest

from lightning_xai.callbacks.write_scores import WriteScores


def write(folder, scores, checkpoint=None, splits=None, first=True) -> None:
    trainer = SimpleNamespace(
        is_global_zero=first,
        default_root_dir=str(folder),
        ckpt_path=checkpoint,
        datamodule=SimpleNamespace(splits=splits),
    )
    WriteScores().on_test_end(trainer, SimpleNamespace(last_scores=scores))


def read_csv(folder) -> list[dict]:
    with (folder / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_checkpoint_and_split(tmp_path, capsys):
    run = tmp_path / "run"
    write(run, {"loss": 1.5, "CIDEr": 0.25}, run / "checkpoints" / "best.ckpt", {"test": "val_sub"})
    write(run, {"loss": 1.25, "CIDEr": 0.5, "swap": 1.0}, run / "checkpoints" / "best.ckpt", {"test": "val_sub_opt"})
    write(run, {"loss": math.nan}, tmp_path / "other.ckpt")
    write(run, {"loss": 2.0})
    write(run, {"loss": 1.0, "CIDEr": 0.75}, run / "checkpoints" / "best.ckpt", {"test": "val_sub"})  # trained on
    rows = json.loads((run / "scores.json").read_text())
    assert [(row["checkpoint"], row["split"], row["loss"]) for row in rows] == [
        ("checkpoints/best.ckpt", "val_sub_opt", 1.25),
        (str(tmp_path / "other.ckpt"), "test", None),
        ("configured", "test", 2.0),
        ("checkpoints/best.ckpt", "val_sub", 1.0),
    ]
    table = read_csv(run)
    assert list(table[0]) == ["checkpoint", "split", "loss", "CIDEr", "swap"]
    assert [row["CIDEr"] for row in table] == ["0.5", "", "", "0.75"] and table[1]["loss"] == ""
    assert sorted(path.name for path in run.iterdir()) == ["scores.csv", "scores.json"]
    assert capsys.readouterr().out.count(f"scores={run / 'scores.csv'}") == 5


def test_nothing_is_written_without_scores_and_by_other_processes(tmp_path):
    write(tmp_path, None)
    write(tmp_path, {"loss": 1.0}, first=False)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_told_of_before_the_test(tmp_path):
    (tmp_path / "scores.json").write_text("{")
    trainer = SimpleNamespace(default_root_dir=str(tmp_path))
    WriteScores().setup(trainer, SimpleNamespace(), "fit")
    with pytest.raises(ValueError, match=r"scores\.json is no table of scores"):
        WriteScores().setup(trainer, SimpleNamespace(), "test")


@pytest.mark.parametrize("content", ["{", '{"loss": 1}', '[{"loss": 1}]'])
def test_another_file_of_that_name_stays(tmp_path, content):
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(ValueError, match=r"scores\.json is no table of scores that a test run wrote: move it away"):
        write(tmp_path, {"loss": 1.0})
    assert (tmp_path / "scores.json").read_text() == content
