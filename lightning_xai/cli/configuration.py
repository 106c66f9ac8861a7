"""Configuration files that state only their difference: `extends: other.yaml` on top of a file's own keys."""

from collections.abc import Iterator
from pathlib import Path

import yaml


def config_files(arguments: list[str]) -> list[Path]:
    """The files that `--config` options name, in their order."""
    return [Path(value) for word, value in _options(arguments) if word == "--config"]


def expand_extends(arguments: list[str]) -> list[str]:
    """Replace each `--config FILE` by the chain of files that FILE extends, base first.

    A file's `extends` names another file relative to its own folder. Later files override earlier ones key by key.

    Raises:
        SystemExit: a file does not exist, is not a YAML mapping, or extends itself.
    """
    expanded: list[str] = []
    for word, value in _options(arguments):
        if word == "--config":
            expanded += [part for file in chain(Path(value)) for part in ("--config", str(file))]
        else:
            expanded.append(word)
    return expanded


def _options(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Each word with an empty value, except that the spellings of `--config FILE` become ("--config", FILE)."""
    words = iter(arguments)
    for word in words:
        if word in ("-c", "--config"):
            yield "--config", next(words, "")
        elif word.startswith("--config="):
            yield "--config", word.split("=", 1)[1]
        else:
            yield word, ""


def chain(file: Path) -> list[Path]:
    """`file` and everything it extends, base first."""
    files: list[Path] = []
    while True:
        if not file.is_file():
            raise SystemExit(f"--config '{file}': no such file; give a YAML file such as configs/demo.yaml")
        if file.resolve() in (known.resolve() for known in files):
            raise SystemExit(f"--config '{file}' extends itself; break the circle of `extends`")
        files.append(file)
        try:
            content = yaml.safe_load(file.read_text())
        except yaml.YAMLError as error:
            raise SystemExit(f"--config '{file}' is not valid YAML: {error}") from None
        if not isinstance(content, dict):
            raise SystemExit(f"--config '{file}' holds no mapping of keys to values")
        if content.get("extends") is None:
            return files[::-1]
        file = file.parent / str(content["extends"])
