"""Which errors are sentences for the user, and which are mistakes whose place has to be shown."""

import dis
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import ms_deform_attn

PACKAGES = (Path(__file__).parents[1], Path(ms_deform_attn.__file__).parent)
RAISE = dis.opmap["RAISE_VARARGS"]
# The parts of a traceback that Python has printed.
TRACEBACK = re.compile(r"^(?:Original )?Traceback \(most recent call last\):\n", re.MULTILINE)
FRAME = re.compile(r'^  File "(.+)", line \d+, in .+\n    (.*)', re.MULTILINE)
CAUSED = re.compile(r"\n\n(?:The above exception was the direct cause|During handling of the above exception)")


def our_sentence(error: BaseException) -> str | None:
    """What this project says of an error: the text of the outermost one of its causes that it raised by itself.

    Whether here or in a process that loads data. None where nothing of it was raised by a `raise` of this project: then
    its traceback is what helps.
    """
    for cause in causes(error):
        if not isinstance(cause, Exception) or cause.__traceback__ is None:
            continue
        said = str(cause.args[0]) if len(cause.args) == 1 else str(cause)
        if _raised_here(cause.__traceback__):
            return said
        if (of_worker := _raised_in_worker(said)) is not None:
            return of_worker
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and everything it came from, the outermost first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _raised_here(traceback: TracebackType) -> bool:
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    return _is_ours(code.co_filename) and code.co_code[traceback.tb_lasti] == RAISE


def _raised_in_worker(text: str) -> str | None:
    """The same of an error of a loader's worker, of which torch hands on no more than its traceback as text."""
    if " in DataLoader worker process " not in text.partition("\n")[0]:
        return None
    for report in reversed(TRACEBACK.split(text)[1:]):
        frames = FRAME.findall(report)
        if frames and _is_ours(frames[-1][0]) and frames[-1][1].startswith("raise "):
            ending = re.search(r"^\S.*", report, re.MULTILINE | re.DOTALL)
            return None if ending is None else CAUSED.split(ending[0])[0].partition(": ")[2].strip()
    return None


def _is_ours(file: str) -> bool:
    return any(Path(file).is_relative_to(package) for package in PACKAGES)
