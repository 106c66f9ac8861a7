"""One table of explanation methods and their numbers: printed, and as files."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path

Table = Mapping[str, Mapping[str, float]]


def method_table(table: Table) -> str:
    """Methods as rows and numbers as columns of aligned text; "–" where a number is not defined."""
    columns = columns_of(table)
    rows = [["method", *columns]]
    rows += [[method, *(cell(numbers.get(name)) for name in columns)] for method, numbers in table.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def columns_of(table: Table) -> list[str]:
    """The names of all numbers in the order in which they first appear."""
    return list(dict.fromkeys(name for numbers in table.values() for name in numbers))


def cell(number: float | None) -> str:
    """Whole numbers as they are, others with three decimals."""
    if number is None or math.isnan(number):
        return "–"
    return str(number) if isinstance(number, int) else f"{number:.3f}"


def write_csv(table: Table, file: Path) -> None:
    """One line a method; empty where a number is not defined."""
    columns = columns_of(table)
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["method", *columns])
        for method, numbers in table.items():
            values = (numbers.get(name) for name in columns)
            writer.writerow([method, *("" if v is None or math.isnan(v) else v for v in values)])


def write_json(table: Table, file: Path) -> None:
    """An object a method; null where a number is not defined."""
    content = {
        method: {name: None if math.isnan(value) else value for name, value in numbers.items()}
        for method, numbers in table.items()
    }
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
