"""Pictures in one folder a class: which classes there are, and which files belong to them."""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

NAMED_AT_MOST = 5


@lru_cache(maxsize=1)
def picture_extensions() -> frozenset[str]:
    """Endings of the files that Pillow can open, lower case with their dot."""
    return frozenset(ending for ending, format in Image.registered_extensions().items() if format in Image.OPEN)


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones. Raises: FileNotFoundError."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give one that holds a folder of pictures for each class.")
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def pictures_in(folder: Path) -> list[str]:
    """Paths below `folder` of its picture files at any depth, in a fixed order, without hidden ones."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(place, folder)
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in picture_extensions():
                found.append(name if inside == "." else os.path.join(inside, name))
    return found


def classes_of(folder: Path) -> list[str]:
    """The names of the class folders in `folder`, sorted: a class's label is its place.

    Raises: FileNotFoundError where there is none.
    """
    names = folders_in(folder)
    if not names:
        raise FileNotFoundError(
            f"{folder}: holds no class folders; each class's pictures belong into a folder of its own."
        )
    return names


def read_class_names(file: str | os.PathLike) -> list[str]:
    """Class names from a text file, one a line; the first has label 0."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"class_names={str(file)!r}: no such file; give names, or a file with one a line.")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def check_class_names(names: Sequence[str]) -> None:
    """Raises ValueError for names that occur twice, and for none at all."""
    doubled = sorted({name for name in names if list(names).count(name) > 1}) if len(set(names)) < len(names) else []
    if doubled or not names:
        raise ValueError(f"class_names must be one or more different names, but {doubled or 'none'} is given twice")


def labelled_pictures(folder: Path, class_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Paths of the pictures below `folder` (N,) bytes as the file system has them, and labels (N,) int64.

    Raises: ValueError for a class folder that is none of the classes, FileNotFoundError where there is no picture.
    """
    label = {name: number for number, name in enumerate(class_names)}
    found = folders_in(folder)
    if strange := [name for name in found if name not in label]:
        raise ValueError(
            f"{folder}: {named(strange)} {'is' if len(strange) == 1 else 'are'} none of the {len(class_names)} classes "
            f"({named(class_names)}); rename or remove the folder, add pictures of it to the training set, or give "
            "class_names with it."
        )
    paths, labels = [], []
    for name in found:
        pictures = pictures_in(folder / name)
        paths += [os.fsencode(os.path.join(name, picture)) for picture in pictures]
        labels += [label[name]] * len(pictures)
    if not paths:
        raise FileNotFoundError(
            f"{folder}: no picture in its {len(found)} class folders; give .jpg, .png or similar files."
        )
    return np.array(paths, dtype=np.bytes_), np.array(labels, dtype=np.int64)


def named(names: Sequence[str]) -> str:
    """The first few names in quotes, with how many more there are."""
    shown = ", ".join(repr(name) for name in names[:NAMED_AT_MOST])
    return shown + (f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else "")
