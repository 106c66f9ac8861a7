"""Whether a captioner obeys its graph: what it says when two objects change places."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

OBJECT, RELATION = 0, 2


def with_objects_exchanged(graph: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The graphs of a batch with the features of their first and second object exchanged, those of attributes too.

    attn_fts (B, N, C), attn_masks (B, N), node_types (B, N); an object's attributes follow it. The structure stays: the
    first node now looks at what the second did. A graph with fewer than two objects stays as it is.
    """
    types, mask, features = graph["node_types"], graph["attn_masks"].bool(), graph["attn_fts"]
    number = ((types == OBJECT) & mask).cumsum(1)  # which object a node or attribute is of, from 1
    own = mask & (types != RELATION)
    first, second = (((number == place) & own).int().argmax(1, keepdim=True) for place in (1, 2))
    own = own & (number == 2).any(1, keepdim=True)
    place = torch.arange(types.shape[1], device=types.device).expand_as(types)
    place = torch.where(own & (number == 1), second, torch.where(own & (number == 2), first, place))
    return {**graph, "attn_fts": features.gather(1, place[..., None].expand_as(features))}


def object_pair(names: Sequence[str], types: Sequence[int]) -> tuple[str, str] | None:
    """The names of a graph's first and second object; None where there are not two with different names."""
    objects = [name for name, kind in zip(names, types, strict=True) if kind == OBJECT][:2]
    return (objects[0], objects[1]) if len({name.lower() for name in objects}) == 2 else None


def names_exchanged(before: str, after: str, first: str, second: str) -> bool:
    """Whether one caption names `first` before `second` and the other `second` before `first`.

    Where a name begins first counts; it is one or more whole words, in whatever case. A captioner that names the right
    objects in an order of its own scores about 1/4 if that order is random, and 0 if it follows from what it sees.
    """
    places = [[_place(caption, name) for name in (first, second)] for caption in (before, after)]
    if any(place < 0 for of_caption in places for place in of_caption):
        return False
    return places[0][0] < places[0][1] and places[1][1] < places[1][0]


def _place(caption: str, name: str) -> int:
    """Where a name stands in a caption for the first time, -1 for nowhere."""
    return f" {' '.join(caption.lower().split())} ".find(f" {' '.join(name.lower().split())} ")
