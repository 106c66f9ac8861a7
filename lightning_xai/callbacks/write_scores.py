"""The numbers of test runs as a table: a row for each checkpoint and split, so that several can be compared."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

Row = dict[str, Any]
KEYS = ("checkpoint", "split")


class WriteScores(pl.Callback):
    """Leave what a test measured, the module's `last_scores`, in `<run folder>/scores.csv` and `scores.json`.

    A row begins with `checkpoint` (relative to the run folder where it is inside; "configured" for weights that came
    with the configuration) and `split` (its name where the data module has `splits`, else "test"). Rows of earlier
    tests of other checkpoints or splits stay, as in the table that asg2cap writes of its best checkpoints. A module
    without scores leaves no file. Raises ValueError, before the test, for a scores.json that is no such table.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "test":
            read_scores(Path(trainer.default_root_dir) / "scores.json")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        scores = getattr(pl_module, "last_scores", None)
        if not scores or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        splits = getattr(trainer.datamodule, "splits", None)
        split = splits.get("test", "test") if isinstance(splits, dict) else "test"
        row: Row = {"checkpoint": _named(trainer.ckpt_path, folder), "split": split, **scores}
        rows = [earlier for earlier in read_scores(folder / "scores.json") if _key(earlier) != _key(row)] + [row]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with _replacing(folder / "scores.csv").open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, columns)
            writer.writeheader()
            writer.writerows({name: "" if _undefined(value) else value for name, value in row.items()} for row in rows)
        plain = [{name: None if _undefined(value) else value for name, value in row.items()} for row in rows]
        _replacing(folder / "scores.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        for name in ("scores.csv", "scores.json"):
            _replacing(folder / name).replace(folder / name)
        print(f"scores={folder / 'scores.csv'}", flush=True)


def read_scores(file: Path) -> list[Row]:
    """The rows of a scores.json, none where there is no such file."""
    if not file.exists():
        return []
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        rows = None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"checkpoint", "split"} <= set(row) for row in rows
    ):
        raise ValueError(f"{file} is no table of scores that a test run wrote: move it away")
    return rows


def _named(checkpoint: Any, folder: Path) -> str:
    if not checkpoint:
        return "configured"
    path, folder = Path(checkpoint).resolve(), folder.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in KEYS)


def _undefined(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _replacing(file: Path) -> Path:
    return file.with_name(f"{file.name}.part")
