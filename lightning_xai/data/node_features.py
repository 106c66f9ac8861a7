"""Features of whole images and of boxes in the files that asg2cap computed them into."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_xai.data.abstract_graph import Box
from lightning_xai.data.plain_arrays import read_array
from lightning_xai.data.vocabulary import as_strings

if TYPE_CHECKING:
    import h5py


class ImageFeatures:
    """One vector an image: row i of `<split>_ft.npy` is that of the i-th file name in `<split>_names.npy`.

    An image's id is its file name before the first dot. The array stays on disk and is read row by row.
    Raises FileNotFoundError, or ValueError where the two files do not fit or two file names have one id.
    """

    def __init__(self, names: str | os.PathLike, features: str | os.PathLike):
        self.file = Path(features)
        self.file_names = as_strings(read_array(names))
        self.row = {name.split(".")[0]: row for row, name in enumerate(self.file_names)}
        for name in self.file_names:
            other = self.file_names[self.row[name.split(".")[0]]]
            if other != name:
                raise ValueError(
                    f"{names} names {name!r} and {other!r}: ids end at the first dot, so they are one image."
                )
        self._array: np.ndarray | None = None
        shape = self._features.shape
        if len(shape) != 2 or shape[0] != len(self.file_names):
            raise ValueError(
                f"{features} has shape {shape}, but {names} names {len(self.file_names)} images: one row each is right."
            )

    @property
    def _features(self) -> np.ndarray:
        # Opened where it is used, so that a data set sent to a worker takes no copy of the array along.
        if self._array is None:
            self._array = read_array(self.file, memory_mapped=True)
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}

    @property
    def size(self) -> int:
        return self._features.shape[1]

    def file_name(self, image_id: str) -> str:
        """The picture's file. Raises LookupError for an image that has no feature."""
        return self.file_names[self._row(image_id)]

    def vector(self, image_id: str) -> np.ndarray:
        """(C,) float32. Raises LookupError for an image that has no feature."""
        return np.array(self._features[self._row(image_id)], np.float32)

    def _row(self, image_id: str) -> int:
        try:
            return self.row[image_id]
        except KeyError:
            raise LookupError(f"{self.file} has no feature of image {image_id!r} among its {len(self.row)}.") from None


class BoxFeatures:
    """A vector for each box of an image, from `<folder>/<image id>.jpg.hdf5`, found by the box's exact corners.

    Each process opens a file once and keeps the last `open_files` of them open. '/' in an id is '_' in file names.
    """

    def __init__(self, folder: str | os.PathLike, open_files: int = 128):
        self.folder, self.open_files = Path(folder), open_files
        self._open: OrderedDict[str, tuple[h5py.Dataset, dict[Box, int]]] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def path(self, image_id: str) -> Path:
        return self.folder / f"{_flat(image_id)}.jpg.hdf5"

    def vectors(self, image_id: str, boxes: Sequence[Box]) -> np.ndarray:
        """(N, C) float32, one row for each of the N boxes xyxy, whether or not some are the same.

        Raises FileNotFoundError for an image without a file, LookupError for a box without a feature, or ValueError
        for a file of another kind.
        """
        dataset, rows = self._opened(image_id)
        try:
            wanted = [rows[tuple(box)] for box in boxes]
        except KeyError as error:
            raise LookupError(
                f"{self.path(image_id)} has no feature of image {image_id!r}, box {_corners(error.args[0])} (x1, y1, "
                f"x2, y2) among its {len(rows)}; do boxes end at their last pixel (inclusive) or behind it?"
            ) from None
        # a file holds some dozen rows: all at once is faster than HDF5's choice of some
        return np.asarray(dataset[()], np.float32)[np.array(wanted, np.intp)]

    def corners(self, image_id: str) -> tuple[Box, ...]:
        """The boxes of an image that have a feature, in the order of the file; none without a file.

        Raises ValueError for a file of another kind.
        """
        return tuple(self._opened(image_id)[1]) if self.path(image_id).is_file() else ()

    def size(self, image_id: str) -> tuple[int, int]:
        """(h, w) of the picture that the boxes are of. Raises FileNotFoundError, or ValueError for another file."""
        dataset, _ = self._opened(image_id)
        return int(dataset.attrs["image_h"]), int(dataset.attrs["image_w"])

    def close(self, remaining: int = 0) -> None:
        """Close the files that were used longest ago until at most `remaining` are open."""
        while len(self._open) > remaining:
            _, (dataset, _) = self._open.popitem(last=False)
            dataset.file.close()

    def _opened(self, image_id: str) -> tuple[h5py.Dataset, dict[Box, int]]:
        if self._process != os.getpid():  # a file opened before a fork must not be read on both sides
            self._open, self._process = OrderedDict(), os.getpid()
        if image_id in self._open:
            self._open.move_to_end(image_id)
            return self._open[image_id]
        self.close(self.open_files - 1)
        self._open[image_id] = entry = self._read(image_id)
        return entry

    def _read(self, image_id: str) -> tuple[h5py.Dataset, dict[Box, int]]:
        h5py = import_h5py()
        path = self.path(image_id)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; the boxes of image {image_id!r} have no features.")
        key = f"{_flat(image_id)}.jpg"
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise ValueError(f"{path}: not a file in HDF5 format, or an incomplete one ({error}).") from error
        try:
            dataset = file[key]
            boxes = np.asarray(dataset.attrs["boxes"]).reshape(-1, 4)
            if dataset.ndim != 2 or len(dataset) != len(boxes):
                raise ValueError(f"features of shape {dataset.shape} for {len(boxes)} boxes")
        except (KeyError, ValueError, AttributeError) as error:
            file.close()
            raise ValueError(
                f"{path}: should hold a dataset {key!r} (n, C) with an attribute 'boxes' (n, 4), but: {error}."
            ) from error
        return dataset, {tuple(box): row for row, box in enumerate(boxes.tolist())}


def write_box_features(
    folder: str | os.PathLike, image_id: str, boxes: np.ndarray, features: np.ndarray, size: tuple[int, int]
) -> Path:
    """Write features (n, C) of boxes (n, 4) xyxy of an image of `size` (h, w) as `BoxFeatures` reads them."""
    h5py = import_h5py()
    path = BoxFeatures(folder).path(image_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(path) as partial, h5py.File(partial, "w") as file:
        dataset = file.create_dataset(f"{_flat(image_id)}.jpg", data=np.asarray(features, np.float32))
        dataset.attrs["boxes"] = np.asarray(boxes)
        dataset.attrs["image_h"], dataset.attrs["image_w"] = size
    return path


def write_array(file: str | os.PathLike, array: np.ndarray) -> None:
    """Write numbers or strings as .npy; the file appears when it is complete."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(path) as partial, partial.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` once it is complete."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def import_h5py():
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "features of boxes are in HDF5 files, which need h5py: pip install 'lightning_xai[captions]'."
        ) from error
    return h5py


def _flat(image_id: str) -> str:
    return image_id.replace("/", "_")


def _corners(box: Box) -> str:
    return f"({', '.join(f'{side:g}' for side in box)})"
