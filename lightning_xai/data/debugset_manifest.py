"""The entries of a debug set: what is in it, why, and where it comes from; one line of `manifest.jsonl` each."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Entry:
    """One image of a debug set and where it comes from: a line of the manifest.

    `path` is below the set's folder. A selected image has its `source`, a generated one its `prompt`,
    `negative_prompt`, `concept` and image `seed`; `seed` of a selected image is the draw's, where chance took part.
    `score` is what the strategy ranked it by, `note` what else a reader of the set has to know.
    """

    path: str
    class_name: str
    strategy: str
    rank: int
    score: float | None = None
    source: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    concept: str | None = None
    seed: int | None = None
    provider: str | None = None
    note: str | None = None

    def line(self) -> str:
        """The entry as one line of JSON; what it does not have is left out."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps({"path": known.pop("path"), "class": known.pop("class_name"), **known}, ensure_ascii=False)


def manifest_text(entries: Iterable[Entry]) -> str:
    return "".join(entry.line() + "\n" for entry in entries)


def read_entries(file: str | os.PathLike) -> list[Entry]:
    """The entries of a manifest or of an exported list of prompts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no entry; the message names file and line.
    """
    names = {field.name for field in fields(Entry)} - {"class_name"}
    entries = []
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise FileNotFoundError(
            f"{file}: cannot be read ({error.strerror}); give a {MANIFEST} of a debug set."
        ) from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            entries.append(
                Entry(class_name=values["class"], **{name: values[name] for name in names if name in values})
            )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}, line {number}: no entry of a debug set ({error}); it should be a JSON object with "
                "path, class, strategy and rank."
            ) from None
        check_below(entries[-1].path, f"{file}, line {number}")
    return entries


def read_manifest(folder: str | os.PathLike) -> list[Entry]:
    """The entries of the debug set in `folder`."""
    return read_entries(Path(folder) / MANIFEST)


def image_path(class_name: str, strategy: str, rank: int, suffix: str) -> str:
    """Where an image lies in a debug set; the strategy in its name keeps merged sets apart."""
    return f"{class_name}/{strategy.lower()}_{rank:05d}{suffix.lower()}"


def shortages(entries: Sequence[Entry], class_names: Sequence[str], count: int) -> list[str]:
    """One sentence for each class that has fewer than `count` images."""
    found = Counter(entry.class_name for entry in entries)
    return [
        f"{name}: {found[name]} of {count} images, there are no more candidates"
        for name in class_names
        if found[name] < count
    ]


def check_below(path: str, where: str) -> None:
    """Raises ValueError, which begins with `where`, for a path that leads out of the debug set's folder."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"{where}: path {path!r} should lie below the debug set's folder.")
