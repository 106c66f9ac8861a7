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
    return (objects[0], objects[1]) if len(set(objects)) == 2 else None


def names_exchanged(before: str, after: str, first: str, second: str) -> bool:
    """Whether one caption names `first` before `second` and the other `second` before `first`, words at blanks."""
    captions = before.split(), after.split()
    if not all({first, second} <= set(words) for words in captions):
        return False
    before_words, after_words = captions
    in_order = before_words.index(first) < before_words.index(second)
    return in_order and after_words.index(second) < after_words.index(first)
