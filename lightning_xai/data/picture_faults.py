"""What reading showed to be wrong with the pictures of a set, known to all worker processes at once."""

from collections.abc import Callable

import torch
from torch import Tensor

UNREADABLE, OTHER_SIZE = 1, 2
NAMED_AT_MOST = 5


class PictureFaults:
    """One byte a picture in shared memory: workers write it, the main process reports it, all of them obey it.

    `allowed` is how many pictures may be unreadable: a whole number, or a fraction of all (of which any above 0
    allows one at least).
    """

    def __init__(self, count: int, allowed: int | float):
        if allowed < 0 or (isinstance(allowed, float) and allowed > 1):
            raise ValueError(f"max_bad_images={allowed} should be a fraction from 0.0 to 1.0 or a number of images.")
        self.flags = torch.zeros(count, dtype=torch.uint8).share_memory_()
        self.allowed = max(int(allowed * count), int(allowed > 0)) if isinstance(allowed, float) else allowed
        self._reported = torch.zeros(count, dtype=torch.uint8)

    def mark(self, index: int, fault: int) -> None:
        self.flags[index] |= fault

    def is_unreadable(self, index: int) -> bool:
        return bool(self.flags[index] & UNREADABLE)

    def unreadable(self) -> Tensor:
        """Indices of the pictures found unreadable so far."""
        return (self.flags & UNREADABLE).nonzero().flatten()

    def news(self, describe: Callable[[int], str], file_name: Callable[[int], str]) -> str | None:
        """One line about faults that were found since the last call, or None; `describe` says why one is unreadable."""
        new = self.flags & ~self._reported
        self._reported |= new
        unreadable, other_size = ((new & fault).nonzero().flatten().tolist() for fault in (UNREADABLE, OTHER_SIZE))
        words = []
        if unreadable:
            words.append(
                f"{len(unreadable)} unreadable pictures replaced by the next one "
                f"({len(self.unreadable())} of {len(self.flags)} so far): {_named(unreadable, describe)}"
            )
        if other_size:
            words.append(
                f"{len(other_size)} pictures of another size than annotated (boxes are taken as pixels of the file): "
                f"{_named(other_size, file_name)}"
            )
        return "; ".join(words) or None


def _named(indices: list[int], describe: Callable[[int], str]) -> str:
    named = ", ".join(describe(index) for index in indices[:NAMED_AT_MOST])
    return named + (", ..." if len(indices) > NAMED_AT_MOST else "")
