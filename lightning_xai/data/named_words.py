"""Which node of a scene graph each word of its caption speaks of, where the nodes' names tell."""

from __future__ import annotations

from collections.abc import Sequence


def words_of_names(words: Sequence[str], names: Sequence[str]) -> list[int]:
    """For each word the number of the node whose whole name stands there; -1 where none does, or where two could.

    Of names that overlap ("fire" and "fire hydrant") the longest counts. A name that two nodes share says nothing: no
    word tells which of two dogs it speaks of. Case does not matter.
    """
    lower = [word.lower() for word in words]
    longest, found = [0] * len(words), [-1] * len(words)
    for node, name in enumerate(names):
        parts = name.lower().split()
        for start in range(len(lower) - len(parts) + 1 if parts else 0):
            if lower[start : start + len(parts)] != parts:
                continue
            for place in range(start, start + len(parts)):
                if len(parts) > longest[place]:
                    longest[place], found[place] = len(parts), node
                elif len(parts) == longest[place] and found[place] != node:
                    found[place] = -1
    return found
