"""Series of numbers against epochs, from the log of a training run (one JSON object a line)."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_COCO_KEYS = ("test_coco_eval_bbox", "test_coco_eval")


@dataclass(frozen=True)
class Series:
    """One curve: epochs (N,) and values (N,); split is "train" or "test"."""

    split: str
    epochs: np.ndarray
    values: np.ndarray


def read_training_log(path: str | Path) -> list[dict]:
    """The epochs of a run, from its folder (log.jsonl or log.txt in it) or its log file.

    A run that was resumed may hold an epoch twice; the later line counts.
    """
    path = Path(path)
    candidates = [path / "log.jsonl", path / "log.txt"] if path.is_dir() else [path]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"no training log at {path}; give a run's folder with log.jsonl or log.txt, or such a file"
        )
    text = file.read_text(encoding="utf-8")
    epochs: dict[int, dict] = {}
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            epochs[int(entry["epoch"])] = entry
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not text.endswith("\n"):
                warnings.warn(
                    f"{file}: the last line is cut off (the run was killed while it wrote); left out", stacklevel=2
                )
                continue
            raise ValueError(
                f"{file}, line {number}: not the JSON object of an epoch with the key 'epoch'; remove the line"
            ) from error
    if not epochs:
        raise ValueError(f"{file} holds no epoch yet; wait until one is over")
    return [epochs[epoch] for epoch in sorted(epochs)]


def series(log: list[dict], field: str, com: float = 0.0) -> list[Series]:
    """The curves of one field, smoothed with centre of mass `com`.

    One of the COCO numbers (AP, AP50, ...): the epochs without evaluation are left out. Any other field: its values in
    training and in test, where they exist; missing epochs are interpolated.
    """
    epochs = np.array([entry["epoch"] for entry in log])
    if field in COCO_NUMBERS:
        index = COCO_NUMBERS.index(field)
        numbers = [next((entry[key] for key in _COCO_KEYS if entry.get(key)), None) for entry in log]
        values = np.array([np.nan if found is None else found[index] for found in numbers], dtype=np.float64)
        evaluated = ~np.isnan(values)
        if not evaluated.any():
            return []
        return [Series("test", epochs[evaluated], smoothed(values[evaluated], com))]
    found = []
    for split in ("train", "test"):
        values = [entry.get(f"{split}_{field}") for entry in log]
        values = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        if not np.isnan(values).all():
            found.append(Series(split, epochs, smoothed(interpolated(values), com)))
    return found


def fields(log: list[dict]) -> list[str]:
    """The fields that a log can be asked for."""
    names = {key.split("_", 1)[1] for entry in log for key in entry if key.startswith(("train_", "test_"))}
    names -= {key.split("_", 1)[1] for key in _COCO_KEYS}
    evaluated = any(entry.get(key) for entry in log for key in _COCO_KEYS)
    return (list(COCO_NUMBERS) if evaluated else []) + sorted(names)


def interpolated(values: np.ndarray) -> np.ndarray:
    """Fill gaps on the straight line between neighbours; the last value repeats, before the first nothing is known."""
    known = np.flatnonzero(~np.isnan(values))
    filled = np.interp(np.arange(len(values)), known, values[known])
    filled[: known[0]] = np.nan
    return filled


def smoothed(values: np.ndarray, com: float = 0.0) -> np.ndarray:
    """Exponentially weighted mean of the values so far, Σ aⁱ x₍ₜ₋ᵢ₎ / Σ aⁱ, a = com / (1 + com); com 0 changes nothing.

    Values that are not a number count for nothing.
    """
    if com < 0:
        raise ValueError(f"smoothing {com} is negative; 0 means none, larger is smoother")
    keep = com / (1 + com)
    total = weight = 0.0
    means = np.empty(len(values))
    for i, value in enumerate(values):
        known = not np.isnan(value)
        total = keep * total + (value if known else 0.0)
        weight = keep * weight + known
        means[i] = total / weight if weight > 0 else np.nan
    return means
