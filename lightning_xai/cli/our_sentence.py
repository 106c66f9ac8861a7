"""Which errors are sentences for the user, and which are mistakes whose place has to be shown."""

import dis
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import ms_deform_attn

PACKAGES = (Path(__file__).parents[1], Path(ms_deform_attn.__file__).parent)
RAISE = dis.opmap["RAISE_VARARGS"]


def our_sentence(error: BaseException) -> str | None:
    """What this project says of an error: the text of the outermost one of its causes that it raised by itself.

    None where nothing of it was raised by a `raise` of this project: then its traceback is what helps.
    """
    for cause in causes(error):
        if isinstance(cause, Exception) and cause.__traceback__ is not None and _raised_here(cause.__traceback__):
            return str(cause.args[0]) if len(cause.args) == 1 else str(cause)
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
    ours = any(Path(code.co_filename).is_relative_to(package) for package in PACKAGES)
    return ours and code.co_code[traceback.tb_lasti] == RAISE
