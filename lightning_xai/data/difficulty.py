"""How difficult images are, told from ratings of their explanations, and splits without the hardest ones.

Source: `exguidedfiltering/egdd.py` of RAAA, which calls the score difficulty although 0 is the hardest image.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_xai.data.crowd_tasks import HIGHEST_RATING, rating_of


def image_id(filename: str) -> str:
    """The image number in `p1_COCO_val2014_000000353409__caption_8_attr_result.jpg`: its 4th part, without zeros.

    Raises:
        ValueError: the name has no 4th part, or that is no number.
    """
    parts = Path(filename).name.split("_")
    if len(parts) < 4 or not parts[3].isdigit():
        raise ValueError(
            f"{filename!r} should be named like p1_COCO_val2014_000000353409__caption_8_attr_result.jpg, "
            "with the image's number as its 4th part."
        )
    return parts[3].lstrip("0") or "0"


def image_difficulties(tasks: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Score of each image that has a rating: Σ ratings / (5 · number of them), easiest first, ties as first seen.

    Near 1: people found the explanations relevant. Near 0: the hardest images.

    Raises:
        ValueError: a rating is no number from 0 to 5, or a picture's name has no image number.
    """
    ratings: dict[str, list[float]] = {}
    for task in tasks:
        rating = rating_of(task)
        if rating is not None:
            ratings.setdefault(image_id(task["metadata"]["filename"]), []).append(rating)
    scores = {image: sum(given) / (len(given) * HIGHEST_RATING) for image, given in ratings.items()}
    return dict(sorted(scores.items(), key=lambda item: item[1], reverse=True))


def without_hard(
    names: Sequence[str], difficulties: Mapping[str, float], threshold: float, keep_unrated: bool = True
) -> np.ndarray:
    """(n,) bool: which images of a split stay when those that score below `threshold` are left out.

    An image's number is the last one in its name (`COCO_val2014_000000353409.jpg`, `353409`), without zeros.

    Raises:
        ValueError: threshold outside [0, 1], or a name without a number.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} should be a score from 0 (keep all) to 1.")
    missing = threshold if keep_unrated else -1.0
    return np.array([difficulties.get(_number(name), missing) >= threshold for name in names], dtype=bool)


def _number(name: str) -> str:
    numbers = re.findall(r"\d+", Path(name).stem)
    if not numbers:
        raise ValueError(f"image {name!r} of the split has no number in its name, by which ratings find it.")
    return numbers[-1].lstrip("0") or "0"


def read_names(file: str | os.PathLike) -> list[str]:
    """Image names of a split: `<split>_names.npy`, or a text file with one a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no list of names.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; give the names of a split, such as val_sub_names.npy.")
    if file.suffix != ".npy":
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        names = np.load(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(
            f"{file}: cannot be read without unpickling objects ({error}); save the names as an array of strings."
        ) from None
    if names.ndim != 1 or names.dtype.kind not in "USiu":
        raise ValueError(f"{file}: should be a list of names, but is {names.dtype} {names.shape}.")
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]


def write_names(file: str | os.PathLike, names: Sequence[str]) -> None:
    """The counterpart of `read_names`, in the format that the file's ending says."""
    file = Path(file)
    if file.suffix == ".npy":
        np.save(file, np.array(names, dtype=np.str_))
    else:
        file.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
