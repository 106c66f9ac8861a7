"""What people answered about explanations: the text collection tasks (`tasks.json`) of a crowd platform.

Each task shows one attribution picture; the answer has three text fields, "Content Type Identification" (object,
attribute or relationship), "Content Description" (`bus`, `(bus, red)` or `(man, riding, bus)`) and "Relevance Rating".
"""

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

KINDS = ("object", "attribute", "relationship")
HIGHEST_RATING = 5.0
_PICTURE = re.compile(r"^[^_]+_(?P<image>.+?)__")


@dataclass(frozen=True)
class CrowdAnswer:
    """One answer: `terms` are 1 to 3 words or phrases as typed, `kind` says how many there are, `rating` is 1 to 5."""

    task: str
    image: str
    kind: str
    terms: tuple[str, ...]
    rating: float | None


class CrowdAnswers(NamedTuple):
    """Answers that could be read, and for each that could not the reason, which names its task."""

    answers: list[CrowdAnswer]
    aside: list[str]


def read_crowd_tasks(file: str | os.PathLike) -> list[dict[str, Any]]:
    """The tasks of a `tasks.json`, each of which names its picture in `metadata.filename`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no list of tasks; the message names the file and the task.
    """
    try:
        tasks = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise FileNotFoundError(
            f"{file}: cannot be read ({error.strerror}); give a tasks.json of crowd tasks."
        ) from None
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error}).") from None
    if not isinstance(tasks, list):
        raise ValueError(f"{file}: should hold a list of tasks, but holds a {type(tasks).__name__}.")
    for number, task in enumerate(tasks):
        metadata = task.get("metadata") if isinstance(task, dict) else None
        if not isinstance(metadata, dict) or not isinstance(metadata.get("filename"), str):
            raise ValueError(f"{file}: task {number} has no metadata.filename, which names its picture.")
    return tasks


def annotations(task: dict[str, Any]) -> dict[str, Any]:
    """The fields of a task's answer, empty while it is pending."""
    return (task.get("response") or {}).get("annotations") or {}


def image_of(task: dict[str, Any]) -> str:
    """The image that an attribution picture shows: `p1_<image>__<what>.jpg`, or the file's stem without that form."""
    name = Path(task["metadata"]["filename"]).name
    match = _PICTURE.match(name)
    return match["image"] if match else Path(name).stem


def rating_of(task: dict[str, Any]) -> float | None:
    """The relevance rating; None where the field is empty or missing.

    Raises:
        ValueError: the field holds no number, or one below 0 or above 5; the message names the task.
    """
    given = annotations(task).get("Relevance Rating")
    if given is None or not str(given).strip():
        return None
    try:
        rating = float(given)
    except (TypeError, ValueError):
        rating = math.nan
    if not 0 <= rating <= HIGHEST_RATING:
        raise ValueError(
            f"task {_name(task)}: relevance rating {given!r} should be a number from 1 to {HIGHEST_RATING:g}."
        )
    return rating


def parse_terms(description: str) -> tuple[str, ...]:
    """The 1 to 3 terms of a content description: `bus`, `(bus, red)`, `(man, riding, bus)`, blanks stripped.

    Raises:
        ValueError: there are none, more than 3, or an empty one.
    """
    text = description.strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    terms = tuple(term.strip() for term in re.split("[,，]", text))
    if not 1 <= len(terms) <= 3 or not all(terms) or any(mark in text for mark in "()"):
        raise ValueError(f"content description {description!r} should be 1 to 3 terms such as (bus, red)")
    return terms


def read_answers(tasks: Iterable[dict[str, Any]]) -> CrowdAnswers:
    """The answers of all completed tasks; what cannot be read is put aside with its reason.

    A content type that is empty, or that does not fit the number of terms, is taken from that number.
    """
    answers, aside = [], []
    for task in tasks:
        given = annotations(task)
        if not given:
            continue
        try:
            terms = parse_terms(str(given.get("Content Description") or ""))
            rating = rating_of(task)
        except ValueError as error:
            reason = str(error)
            aside.append(reason if reason.startswith("task ") else f"task {_name(task)}: {reason}")
            continue
        answers.append(CrowdAnswer(_name(task), image_of(task), KINDS[len(terms) - 1], terms, rating))
    return CrowdAnswers(answers, aside)


def _name(task: dict[str, Any]) -> str:
    return str(task.get("task_id") or task["metadata"]["filename"])
