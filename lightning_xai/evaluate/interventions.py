"""What each head, level, layer or point of deformable attention is worth: AP with it muted, beside AP with all."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_xai.explain.intervention import Extent, Intervention, extents

METRICS = ("AP", "AP50", "APs", "APm", "APl")
KINDS = ("layer", "head", "level", "point")


@dataclass(frozen=True)
class AblationRow:
    """AP under one intervention: numbers and changes (against no intervention) by metric, None where there is none.

    muted: "nothing", or the kind of what is muted; index: which one, muted in all layers of the part unless a layer.
    """

    part: str
    muted: str
    index: int | None
    numbers: dict[str, float | None]
    changes: dict[str, float | None]


def mute_one_each(
    by_part: Mapping[str, Extent], kinds: Sequence[str] = KINDS, mode: str = "zero"
) -> Iterator[tuple[str, int, Intervention]]:
    """Every single thing that can be muted, as (kind, index, intervention), in the order of the parts and kinds."""
    for part, extent in by_part.items():
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"cannot mute each {kind!r}; choose from {', '.join(KINDS)}")
            for index in range(getattr(extent, f"{kind}s")):
                yield kind, index, Intervention(part=part, mode=mode, **{f"{kind}s": [index]})


def ablate(
    net: nn.Module,
    evaluate: Callable[[list[Intervention]], Mapping[str, float]],
    parts: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    mode: str = "zero",
) -> list[AblationRow]:
    """Evaluate once without intervention and once with each single layer, head, level and point of each part muted.

    evaluate: gives AP, AP50, APs, APm and APl of `net` under the interventions it is handed (none at first); a negative
    number means that there were no such objects. Raises ValueError for a part that the network does not have.
    """
    existing = extents(net)
    unknown = [part for part in parts or () if part not in existing]
    if unknown:
        raise ValueError(f"there is no part {unknown[0]!r}; the network has {', '.join(existing)}")
    trials = list(mute_one_each({part: existing[part] for part in parts or existing}, kinds, mode))
    baseline = _numbers(evaluate([]))
    rows = [AblationRow("all", "nothing", None, baseline, dict.fromkeys(METRICS))]
    for kind, index, intervention in trials:
        numbers = _numbers(evaluate([intervention]))
        changes = {
            metric: None if numbers[metric] is None or baseline[metric] is None else numbers[metric] - baseline[metric]
            for metric in METRICS
        }
        rows.append(AblationRow(intervention.part, kind, index, numbers, changes))
    return rows


def print_table(rows: Sequence[AblationRow], console: Console | None = None) -> None:
    """The rows as a table of 80 columns: each metric in per cent, and by how many points it changed."""
    table = Table(title="AP, and its change, with one layer, head, level or point muted", box=SIMPLE_HEAD)
    table.add_column("part", no_wrap=True)
    table.add_column("muted", no_wrap=True)
    for metric in METRICS:
        table.add_column(metric, justify="right", no_wrap=True)
    part = None
    for row in rows:
        if part is not None and row.part != part:
            table.add_section()
        part = row.part
        muted = row.muted if row.index is None else f"{row.muted} {row.index}"
        table.add_row(row.part, muted, *(_cell(row.numbers[m], row.changes[m]) for m in METRICS))
    (console or Console()).print(table)


def write_csv(rows: Sequence[AblationRow], file: Path) -> None:
    """One line a row; columns part, muted, index, each metric, each metric's change; empty where there is no number."""
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["part", "muted", "index", *METRICS, *(f"{metric}_change" for metric in METRICS)])
        for row in rows:
            numbers = [row.numbers[metric] for metric in METRICS] + [row.changes[metric] for metric in METRICS]
            writer.writerow([row.part, row.muted, row.index, *numbers])


def write_json(rows: Sequence[AblationRow], file: Path) -> None:
    """A list of objects with part, muted, index, numbers and changes; null where there is no number."""
    file.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def _numbers(found: Mapping[str, float]) -> dict[str, float | None]:
    """The metrics as plain numbers; AP is negative, or not a number, where there are no objects of a size."""
    return {metric: value if (value := float(found[metric])) >= 0 else None for metric in METRICS}


def _cell(number: float | None, change: float | None) -> str:
    if number is None:
        return "–"
    return f"{100 * number:.1f}" if change is None else f"{100 * number:.1f} {100 * change:+.1f}"
