"""What every data set of picture files shares: unreadable ones are replaced, counted and told of."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lightning_xai.data.picture_faults import UNREADABLE, PictureFaults
from lightning_xai.data.picture_file import UnreadablePicture


class PictureSet(Dataset):
    """Pictures by number; `where` names the set in messages, `max_bad_images` (a number or a fraction) is its patience.

    An unreadable picture is replaced by the next readable one, the same in every process and epoch, and noted in
    `faults`; more of them than allowed raise UnreadablePicture.
    """

    def __init__(self, count: int, where: str, max_bad_images: int | float = 0.01):
        self.where = where
        self.faults = PictureFaults(count, max_bad_images)

    @property
    def source(self) -> str:
        """What the news are about: where the pictures were listed."""
        return self.where

    @abstractmethod
    def path(self, index: int) -> Path:
        """The file of picture `index`."""

    @abstractmethod
    def load(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """The picture (3, h, w) uint8 and its target as they are, before any transform. Raises: UnreadablePicture."""

    def __len__(self) -> int:
        return len(self.faults.flags)

    def load_readable(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Sample `index`, or the first one after it that can be read."""
        for candidate in range(index, index + len(self)):
            candidate %= len(self)
            if self.faults.is_unreadable(candidate):
                continue
            try:
                return self.load(candidate)
            except UnreadablePicture as error:
                self.faults.mark(candidate, UNREADABLE)
                self._check_number_of_unreadable(error)
        raise UnreadablePicture(f"None of the {len(self)} pictures in {self.where} can be read.")

    def _check_number_of_unreadable(self, last: UnreadablePicture) -> None:
        bad = len(self.faults.unreadable())
        if bad > self.faults.allowed:
            raise UnreadablePicture(
                f"{bad} of {len(self)} pictures in {self.where} cannot be read and max_bad_images allows "
                f"{self.faults.allowed}; repair or remove them, or raise it. The last one: {last}"
            ) from last

    def news(self) -> str | None:
        """One line about pictures found faulty since the last call, with the reasons of the first few, or None."""

        def describe(index: int) -> str:
            try:
                self.load(index)
            except UnreadablePicture as error:
                return str(error)
            return f"{self.path(index)} (could not be read for a while)"

        return self.faults.news(describe, lambda index: str(self.path(index)))
