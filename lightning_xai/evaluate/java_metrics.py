"""METEOR and SPICE: metrics of captions that only exist as Java programs."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "pycocoevalcap"
METEOR_OPTIONS = ("-", "-", "-stdio", "-l", "en", "-norm")


class JavaMetricMissing(RuntimeError):
    """A metric's program, its models or Java itself is not on this machine; the message says what to install."""


def meteor(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    jar: str | os.PathLike | None = None,
    java: str = "java",
    memory: str = "2G",
) -> tuple[float, list[float]]:
    """METEOR 1.5 of the corpus and of each caption, in [0, 1].

    jar: `meteor-1.5.jar` with `data/paraphrase-en.gz` beside it (default: that of the package pycocoevalcap).
    Raises JavaMetricMissing where one of them is not there, RuntimeError where the program fails.
    Source: Denkowski and Lavie, "Meteor Universal" (2014).
    """
    path = meteor_program(jar, java)
    asked = [
        " ||| ".join(("SCORE", *(_line(reference) for reference in known), _line(caption)))
        for caption, known in zip(captions, references, strict=True)
    ]
    command = [java, f"-Xmx{memory}", "-jar", path.name, *METEOR_OPTIONS]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said}
        program = subprocess.Popen(command, cwd=path.parent, encoding="utf-8", **pipes)
        try:
            # one line at a time: with all at once both sides would wait for the other to read
            statistics = [_answer(program, line) for line in asked]
            answers = [_answer(program, " ||| ".join(("EVAL", *statistics)))]
            answers += [program.stdout.readline() for _ in captions]
            scores = [float(answer) for answer in answers]
        except (ValueError, OSError) as error:
            said.seek(0)
            raise RuntimeError(f"METEOR ({' '.join(command)}) failed: {error}; {said.read().strip()[-500:]}") from error
        finally:
            program.kill()
            program.wait()
            for pipe in (program.stdin, program.stdout):
                with suppress(OSError):  # what could not be written to a dead program is not written now
                    pipe.close()
    return scores[-1], scores[:-1]


def _answer(program: subprocess.Popen, line: str) -> str:
    program.stdin.write(f"{line}\n")
    program.stdin.flush()
    return program.stdout.readline().strip()


def _line(sentence: str) -> str:
    """A sentence as a field of the program's input."""
    return " ".join(sentence.replace("|||", "").split())


def spice(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    jar: str | os.PathLike | None = None,
    java: str = "java",
    memory: str = "8G",
) -> tuple[float, list[float]]:
    """SPICE, mean and of each caption, in [0, 1]; a caption without any scene graph is NaN, and so is then the mean.

    jar: `spice-1.0.jar` with `lib/` beside it (default: that of the package pycocoevalcap), which must hold Stanford
    CoreNLP 3.6.0 and its models. Raises JavaMetricMissing where one of them is not there, RuntimeError where the
    program fails. Source: Anderson et al., "SPICE" (2016).
    """
    path = spice_program(jar, java)
    entries = [
        {"image_id": number, "test": caption, "refs": list(known)}
        for number, (caption, known) in enumerate(zip(captions, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "captions.json"), Path(folder, "scores.json")
        given.write_text(json.dumps(entries), encoding="utf-8")
        cache = Path(folder, "cache")
        cache.mkdir()
        command = [java, f"-Xmx{memory}", "-jar", path.name, str(given), "-cache", str(cache), "-out", str(found)]
        done = subprocess.run([*command, "-subset", "-silent"], cwd=path.parent, capture_output=True, text=True)
        if done.returncode or not found.is_file():
            raise RuntimeError(f"SPICE ({' '.join(command)}) failed: {done.stderr.strip()[-500:]}")
        results = json.loads(found.read_text(encoding="utf-8"))
    by_number = {entry["image_id"]: _number(entry["scores"]["All"]["f"]) for entry in results}
    scores = [by_number[number] for number in range(len(entries))]
    return math.fsum(scores) / len(scores), scores


def _number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def meteor_program(jar: str | os.PathLike | None = None, java: str = "java") -> Path:
    """METEOR's jar, see `meteor`. Raises JavaMetricMissing unless all that it needs is there."""
    path = _jar(jar, "METEOR", "meteor/meteor-1.5.jar", java)
    paraphrases = path.parent / "data" / "paraphrase-en.gz"
    if not paraphrases.is_file():
        raise JavaMetricMissing(f"METEOR needs its paraphrases: {paraphrases} is missing.")
    return path


def spice_program(jar: str | os.PathLike | None = None, java: str = "java") -> Path:
    """SPICE's jar, see `spice`. Raises JavaMetricMissing unless all that it needs is there."""
    path = _jar(jar, "SPICE", "spice/spice-1.0.jar", java)
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        if not (path.parent / "lib" / name).is_file():
            raise JavaMetricMissing(
                f"SPICE needs {path.parent / 'lib' / name}, which no package brings; take it from "
                "stanford-corenlp-full-2015-12-09.zip of nlp.stanford.edu."
            )
    return path


def _jar(given: str | os.PathLike | None, metric: str, inside: str, java: str) -> Path:
    if given is not None:
        path = Path(given)
    else:
        package = find_spec(PACKAGE)
        if package is None or not package.submodule_search_locations:
            raise JavaMetricMissing(f"{metric} is a Java program: name its jar, or pip install {PACKAGE}.")
        path = Path(package.submodule_search_locations[0]) / inside
    if not path.is_file():
        raise JavaMetricMissing(f"{metric}: {path} does not exist; name the jar of its Java program.")
    if shutil.which(java) is None:
        raise JavaMetricMissing(f"{metric} is a Java program, but there is no {java!r} on this machine; install Java.")
    return path.resolve()
