"""Where the object is in a picture, as a PNG file beside it: 255 on the object, 0 beside it, 128 where nobody knows.

In memory a mask is int8 (h, w): 1 on the object, 0 beside it, -1 unknown.
"""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_xai.data.picture_file import UnreadablePicture

OBJECT, BESIDE, UNKNOWN = 1, 0, -1
GREY = {OBJECT: 255, BESIDE: 0, UNKNOWN: 128}


def read_object_mask(path: str | os.PathLike, shape: tuple[int, int]) -> Tensor:
    """The mask (h, w) of a picture of `shape`; 1 counts as the object too where the file has no 255.

    Raises: UnreadablePicture for a file that is no picture of one channel, of another shape or with other values.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("1", "L", "P"):
                raise UnreadablePicture(
                    f"{path}: a mask has one channel of 8 bits, but this file's mode is {picture.mode}."
                )
            grey = np.array(picture.convert("L") if picture.mode == "1" else picture)
    except UnreadablePicture:
        raise
    except Exception as error:  # decoders of damaged files raise whatever their format's code stumbles on
        raise UnreadablePicture(f"{path}: cannot be read as a mask ({error}).") from error
    if grey.shape != tuple(shape):
        raise UnreadablePicture(
            f"{path}: a mask of {grey.shape[1]}×{grey.shape[0]} for a picture of {shape[1]}×{shape[0]} pixels."
        )
    values = set(np.unique(grey).tolist())
    if not (values <= {0, 128, 255} or values <= {0, 1, 128}):
        raise UnreadablePicture(
            f"{path}: holds the values {sorted(values)[:6]}, but a mask is 255 on the object, 0 beside it and 128 "
            "where nobody knows."
        )
    mask = np.zeros(grey.shape, np.int8)
    mask[(grey == 255) | (grey == 1)] = OBJECT
    mask[grey == 128] = UNKNOWN
    return torch.from_numpy(mask)


def write_object_mask(path: str | os.PathLike, mask: Tensor) -> None:
    """Write a mask (h, w) of 1, 0 and -1 as `read_object_mask` reads it; its folder is made."""
    if mask.dim() != 2 or not set(mask.unique().tolist()) <= set(GREY):
        raise ValueError(f"a mask is (h, w) of 1, 0 and -1, but has shape {tuple(mask.shape)} and other values")
    grey = np.zeros(tuple(mask.shape), np.uint8)
    for value, level in GREY.items():
        grey[mask.cpu().numpy() == value] = level
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).save(path)
