"""Image files held in memory as they are on the disk, so that a slow file system is read once."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from lightning_xai.data.picture_file import UnreadablePicture, read_bytes


class ImageCache:
    """The bytes of the files `paths[i]` for i in `indices`; files that cannot be read are left out.

    The bytes lie in one tensor: workers that are forked share its pages, workers that are spawned get it through
    shared memory; neither has a copy of its own. With one cache a process, `indices` is that process's share.
    """

    def __init__(self, paths: Sequence[str | os.PathLike], indices: Sequence[int], threads: int = 8):
        with ThreadPoolExecutor(threads) as pool:
            sizes = list(pool.map(lambda index: _size(paths[index]), indices))
            self._place = {}
            end = 0
            for index, size in zip(indices, sizes, strict=True):
                if size:
                    self._place[index] = (end, end + size)
                    end += size
            try:
                self._bytes = torch.empty(end, dtype=torch.uint8)
            except RuntimeError as error:
                raise MemoryError(
                    f"{end / 2**30:.1f} GiB for the bytes of {len(self._place)} image files in this process cannot be "
                    "had; switch cache_mode off or use more nodes."
                ) from error
            complete = list(pool.map(lambda index: self._fill(index, paths[index]), self._place))
        self._place = {
            index: place for (index, place), filled in zip(self._place.items(), complete, strict=True) if filled
        }

    def _fill(self, index: int, path: str | os.PathLike) -> bool:
        start, end = self._place[index]
        try:
            data = read_bytes(path)
        except UnreadablePicture:
            return False
        if len(data) != end - start:
            return False
        self._bytes[start:end] = data
        return True

    def __len__(self) -> int:
        return len(self._place)

    @property
    def nbytes(self) -> int:
        return self._bytes.numel()

    def get(self, index: int) -> Tensor | None:
        """The file's bytes, or None where it is not held."""
        place = self._place.get(index)
        return None if place is None else self._bytes[place[0] : place[1]]


def _size(path: str | os.PathLike) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
