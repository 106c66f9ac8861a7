"""Arrays in .npy files: plain ones are read, those of Python objects are converted without running what they hold."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np

# What a pickled array of numbers, strings and lists asks for; whatever else a file names is never called.
_ARRAY_PARTS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}


def read_array(file: str | os.PathLike, memory_mapped: bool = False) -> np.ndarray:
    """The array of an .npy file, never unpickling anything.

    Raises FileNotFoundError, or ValueError for a file that is no array or holds Python objects.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name an existing .npy file.")
    try:
        return np.load(path, mmap_mode="r" if memory_mapped else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if holds_objects(path):
            raise ValueError(
                f"{path} holds Python objects, which are not loaded because a file can make them run any program; "
                f"if you trust where it is from, run `lightning-xai convert-arrays {path}` once."
            ) from error
        raise ValueError(f"{path}: no array in numpy's .npy format ({error}).") from error


def holds_objects(file: str | os.PathLike) -> bool:
    """Whether an .npy file is an array of Python objects, told from its header alone."""
    with open(file, "rb") as stream:
        try:
            _, _, dtype = _header(stream)
        except (ValueError, EOFError):
            return False
    return dtype.hasobject


def _header(stream) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"format version {version}")
    return readers[version](stream)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def plain_array(file: str | os.PathLike) -> np.ndarray:
    """The array of Python objects in `file` as one of numbers or strings, which every program can read.

    Only numbers, strings and lists of them are unpickled; nothing that the file names is run. Raises ValueError for
    anything else in it, for rows of different length, and for a file that is no array of objects.
    """
    path = Path(file)
    with path.open("rb") as stream:
        try:
            shape, fortran, dtype = _header(stream)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path}: no array in numpy's .npy format ({error}).") from error
        if not dtype.hasobject:
            raise ValueError(f"{path} holds no Python objects but {dtype}; it can be read as it is.")
        try:
            loaded = _ArrayUnpickler(stream, encoding="bytes").load()
        except Exception as error:  # a damaged or hostile pickle can raise anything
            raise ValueError(
                f"{path} is not converted: {error}; only numbers, strings and lists of them are, since anything else "
                "could run a program."
            ) from error
    entries = np.asarray(loaded, dtype=object)
    if entries.shape != tuple(shape):
        entries = entries.reshape(shape, order="F" if fortran else "C")
    return _without_objects(entries.tolist(), path)


def _without_objects(entries, path: Path) -> np.ndarray:
    kinds = {type(entry).__name__ for entry in _leaves(entries)}
    allowed = {"str", "str_", "bytes", "bytes_", "int", "float", "bool"}
    strange = sorted(kind for kind in kinds if kind not in allowed and not kind.startswith(("int", "uint", "float")))
    if strange:
        raise ValueError(f"{path} is not converted: it holds {', '.join(strange)}, not only numbers and strings.")
    if kinds & {"str", "str_", "bytes", "bytes_"}:  # a pair of a name and a number becomes two strings
        entries = _as_text(entries)
    try:
        converted = np.array(entries)
    except ValueError as error:
        raise ValueError(f"{path} is not converted: its rows have different lengths.") from error
    if converted.dtype.hasobject:
        raise ValueError(f"{path} is not converted: its numbers are too large for an array.")
    return converted


def _leaves(entries):
    for entry in entries:
        if isinstance(entry, list | tuple | np.ndarray):
            yield from _leaves(entry.tolist() if isinstance(entry, np.ndarray) else entry)
        else:
            yield entry


def _as_text(entries):
    if isinstance(entries, np.ndarray):
        entries = entries.tolist()
    if isinstance(entries, list | tuple):
        return [_as_text(entry) for entry in entries]
    return entries.decode("utf-8") if isinstance(entries, bytes) else str(entries)
