"""Picture files of every kind become uint8 RGB tensors, or one error that says why not."""

import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

try:
    from torchvision.io import ImageReadMode, decode_image
except ImportError:  # torchvision 0.29 announced that it will be removed; Pillow's pixels are the same, a little later
    decode_image = None

# About a gigabyte while it is decoded; Pillow, which reads the header, refuses twice this number by itself.
MAX_PIXELS = 89_478_485
# Its JPEG decoder withstands damaged files; its PNG decoder (torchvision 0.29) can end the process on one.
DECODED_BY_TORCHVISION = {"JPEG", "MPO"} if decode_image else set()
ORIENTATION = 0x112


class UnreadablePicture(ValueError):
    """A file that cannot be read, is no picture, is damaged or is too large."""


def read_bytes(path: str | os.PathLike) -> Tensor:
    """The file's bytes as a uint8 tensor (n,)."""
    try:
        return torch.from_numpy(np.fromfile(path, dtype=np.uint8))
    except OSError as error:
        raise UnreadablePicture(f"{path}: cannot be read ({error.strerror or error}).") from error


def decode_picture(
    data: Tensor, name: str | os.PathLike, max_pixels: int = MAX_PIXELS, apply_exif_orientation: bool = False
) -> Tensor:
    """Decode file bytes to RGB (3, h, w) uint8 with channels-last strides.

    Greyscale, palette and CMYK become RGB, alpha is dropped, 16-bit pictures keep their high byte, an animation gives
    its first frame. JPEG goes through torchvision, which hands the same pixels over quicker than Pillow, which reads
    every other format. The EXIF orientation is ignored unless asked for, as COCO's boxes are drawn on unturned pixels
    (Pillow turns TIFF files in any case). `name` is only quoted in errors.

    Raises: UnreadablePicture, also for a truncated file and for more than `max_pixels` pixels.
    """
    try:
        picture = Image.open(io.BytesIO(data.numpy()))
        width, height = picture.size
        if width * height > max_pixels:
            raise UnreadablePicture(
                f"{name}: {width}×{height} is more than max_pixels={max_pixels}; raise that if the size is right."
            )
        turned = apply_exif_orientation and picture.getexif().get(ORIENTATION, 1) != 1
        if turned or picture.format not in DECODED_BY_TORCHVISION:
            return _decode_by_pillow(ImageOps.exif_transpose(picture) if turned else picture)
        return decode_image(data, ImageReadMode.RGB)
    except (UnreadablePicture, MemoryError):
        raise
    except Exception as error:  # decoders of damaged files raise whatever their format's code stumbles on
        size = "an empty file" if len(data) == 0 else f"{len(data)} bytes"
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no picture of a known format" if unknown else (str(error) or repr(error)).splitlines()[0]
        raise UnreadablePicture(f"{name} ({size}): {reason}.") from error


def _decode_by_pillow(picture: Image.Image) -> Tensor:
    if picture.mode.startswith("I"):  # Pillow's own conversion would make everything above 255 white
        grey = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        pixels = np.repeat(grey[..., None], 3, axis=-1)
    elif picture.mode == "F":
        raise ValueError("a floating-point picture has no known range; convert it to 8 or 16 bits")
    else:
        pixels = np.array(picture.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def list_pictures(source: str | os.PathLike | list[str]) -> list[Path]:
    """The picture files of a folder in alphabetical order, or the given file or files, each of which must exist."""
    if not isinstance(source, list) and Path(source).is_dir():
        extensions = {extension for extension, format in Image.registered_extensions().items() if format in Image.OPEN}
        files = sorted(path for path in Path(source).iterdir() if path.suffix.lower() in extensions)
        if not files:
            raise FileNotFoundError(f"{source}: no picture in this folder; give one with .jpg, .png or similar files.")
        return files
    files = [Path(source)] if isinstance(source, (str, os.PathLike)) else [Path(path) for path in source]
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file or folder; give a folder of pictures or picture files.")
    return files
