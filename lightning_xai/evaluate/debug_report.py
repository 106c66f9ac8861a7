"""Does a debug set repair a classifier? What was wrong and is right now, what was right and is wrong now, over seeds.

A *run* is one classifier trained with one seed: the one before, and the one after fine-tuning with each strategy's
debug set. Numbers of a strategy are means over the seeds with Student's confidence interval; strategies are compared by
their differences seed by seed, as all of a seed start from the same classifier.
"""

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BEFORE = "before"
# column -> (heading, how a number is written)
COLUMNS = {
    "test": ("acc. test", "{:.1%}"),
    "heldout": ("acc. held-out", "{:.1%}"),
    "repaired": ("repaired", "{:.1%}"),
    "broken": ("broken", "{:.1%}"),
    "energy": ("relevance on object", "{:.1%}"),
}


@dataclass(frozen=True)
class Judged:
    """One classifier's answers to a set's images, always in the same order: `labels` and `predicted` (n,) int64."""

    labels: np.ndarray
    predicted: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


def repaired(before: Judged, after: Judged) -> float:
    """Share of the former failures that are right now; NaN where nothing had failed."""
    _same_images(before, after)
    failed = ~before.correct
    return float(after.correct[failed].mean()) if failed.any() else math.nan


def broken(before: Judged, after: Judged) -> float:
    """Share of the former hits that are wrong now; NaN where nothing had been right."""
    _same_images(before, after)
    return float((~after.correct[before.correct]).mean()) if before.correct.any() else math.nan


def by_class(before: Judged, after: Judged, class_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Accuracy before and after, repaired and broken, for the images of each class that has some."""
    found = {}
    for label, name in enumerate(class_names):
        own = before.labels == label
        if own.any():
            old, new = (Judged(judged.labels[own], judged.predicted[own]) for judged in (before, after))
            found[name] = {
                "before": old.accuracy,
                "after": new.accuracy,
                "repaired": repaired(old, new),
                "broken": broken(old, new),
            }
    return found


def _same_images(before: Judged, after: Judged) -> None:
    if not np.array_equal(before.labels, after.labels):
        raise ValueError(
            f"the {len(before.labels)} images judged before are not the {len(after.labels)} judged after: a repair is "
            "counted image by image"
        )


def mean_and_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean m and half width w of Student's interval m ± w for `level`, of the values that are not NaN.

    w is NaN for fewer than two of them.
    """
    from scipy.stats import t

    known = np.array([value for value in values if not math.isnan(value)])
    if len(known) < 2:
        return (float(known[0]) if len(known) else math.nan), math.nan
    return float(known.mean()), float(
        t.ppf((1 + level) / 2, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known))
    )


@dataclass(frozen=True)
class RepairTable:
    """`runs[strategy][column]`: one number a seed, in the order of `seeds`; the first strategy is `BEFORE`."""

    seeds: tuple[int, ...]
    runs: Mapping[str, Mapping[str, Sequence[float]]]
    level: float = 0.95

    def row(self, strategy: str) -> dict[str, tuple[float, float]]:
        """Mean and half width of every column."""
        return {column: mean_and_interval(values, self.level) for column, values in self.runs[strategy].items()}

    def gain(self, strategy: str, over: str, column: str = "heldout") -> tuple[float, float]:
        """Mean of the differences to strategy `over`, seed by seed, and the half width of their interval."""
        pairs = zip(self.runs[strategy][column], self.runs[over][column], strict=True)
        return mean_and_interval([own - other for own, other in pairs], self.level)

    def verdict(self, strategy: str, over: str, column: str = "heldout") -> str:
        """ "better" or "worse" where the interval of `gain` excludes 0, "not told apart" where it does not.

        With a single seed there is no interval: "one seed".
        """
        mean, half = self.gain(strategy, over, column)
        if math.isnan(half):
            return "one seed"
        if mean - half > 0:
            return "better"
        return "worse" if mean + half < 0 else "not told apart"

    def cells(self, baseline: str | None = None) -> tuple[list[str], list[list[str]]]:
        """Headings and rows of text; the last columns say which strategies are above `BEFORE` and a `baseline`."""
        columns = [column for column in COLUMNS if any(column in of for of in self.runs.values())]
        compared = [name for name in (BEFORE, baseline) if name in self.runs and len(self.seeds) > 1]
        heads = ["strategy", *(COLUMNS[column][0] for column in columns)]
        heads += [f"held-out, gain over {name}" for name in compared]
        rows = []
        for strategy in self.runs:
            numbers, row = self.row(strategy), [strategy]
            row += [_written(numbers.get(column, (math.nan, math.nan)), COLUMNS[column][1]) for column in columns]
            for other in compared:
                gain = f"{_written(self.gain(strategy, other), '{:+.1%}')}, {self.verdict(strategy, other)}"
                row.append("" if strategy in (BEFORE, other) else gain)
            rows.append(row)
        return heads, rows

    def text(self, baseline: str | None = None) -> str:
        """The table as text; ± is the interval over the seeds."""
        heads, rows = self.cells(baseline)
        widths = [max(len(line[place]) for line in (heads, *rows)) for place in range(len(heads))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (heads, *rows)
        ]
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join(line.rstrip() for line in lines)

    def note(self, gains: bool = False) -> str:
        """What the numbers are, in a sentence; gains: and what is said of gains over another strategy."""
        seeds = f"seed {self.seeds[0]}" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        said = (
            f"mean ± {self.level:.0%} interval over {seeds}; repaired: former failures of the held-out set that are "
            "right now; broken: former hits of the test set that are wrong now"
        )
        if any("energy" in of for of in self.runs.values()):
            said += "; relevance on object: of the true class, held-out set"
        if gains and len(self.seeds) > 1:
            said += "; gain: differences seed by seed, each judged for itself, without a correction for their number"
        return said

    def write(self, folder: str | os.PathLike) -> list[Path]:
        """debug_report.csv, a row for each strategy and seed, and debug_report.json with means and intervals too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        columns = [column for column in COLUMNS if any(column in of for of in self.runs.values())]
        table, summary = folder / "debug_report.csv", folder / "debug_report.json"
        with open(table, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["strategy", "seed", *columns])
            for strategy, of in self.runs.items():
                for place, seed in enumerate(self.seeds):
                    writer.writerow([strategy, seed, *(of[c][place] if c in of else "" for c in columns)])
        content = {
            strategy: {
                column: {"mean": mean, "half_width": half, "by_seed": list(values)}
                for (column, values), (mean, half) in zip(of.items(), self.row(strategy).values(), strict=True)
            }
            for strategy, of in self.runs.items()
        }
        content = {"seeds": list(self.seeds), "level": self.level, "strategies": content}
        summary.write_text(json_text(content), encoding="utf-8")
        return [table, summary]


def json_text(content: Any) -> str:
    """Nested mappings and sequences as JSON, where NaN, which JSON does not have, is null."""
    return json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n"


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def _written(number: tuple[float, float], form: str) -> str:
    mean, half = number
    if math.isnan(mean):
        return "–"
    text = form.format(mean)
    return text if math.isnan(half) else f"{text} ± {half * 100:.1f}"
