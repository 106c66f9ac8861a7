"""Whether an explanation of a caption is true: does each word point to the node of the graph that it speaks of?"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

OBJECT, ATTRIBUTE, RELATION = range(3)
KINDS = ("objects", "attributes", "relations")
CHANCE = "chance"


def same_object(node_types: Tensor, mask: Tensor) -> Tensor:
    """(B, N, N) bool: which nodes are of one object, its attributes included; a relation is alone.

    node_types (B, N), mask (B, N), both as captioners read them: attributes follow their object, relations come last.
    """
    number = ((node_types == OBJECT) & mask).cumsum(1)
    place = torch.arange(node_types.shape[1], device=node_types.device)
    number = torch.where(node_types == RELATION, -1 - place, number)
    return (number[:, :, None] == number[:, None, :]) & mask[:, :, None] & mask[:, None, :]


def grounding_counts(relevance: Tensor, word_nodes: Tensor, node_types: Tensor, mask: Tensor) -> Tensor:
    """(3, 3) float64, for words of objects, attributes and relations: how many there are, how many have their most
    relevant node right, and how many at least its object.

    relevance (B, T, N), word_nodes (B, T) the node that each word speaks of or -1, node_types and mask (B, N). Where k
    nodes are equally relevant, each counts 1/k: an explanation that prefers nothing scores what chance does.
    """
    scores = relevance.double().masked_fill(~mask[:, None], -torch.inf)
    best = (scores == scores.amax(2, keepdim=True)) & mask[:, None]
    chosen = best.double() / best.sum(2, keepdim=True).clamp(min=1)  # (B, T, N)
    spoken = word_nodes.clamp(min=0)[..., None]  # (B, T, 1)
    right = chosen.gather(2, spoken)[..., 0]
    related = same_object(node_types, mask).gather(1, spoken.expand_as(chosen))  # (B, T, N)
    right_object = (chosen * related).sum(2)
    kind = node_types.gather(1, word_nodes.clamp(min=0))
    counts = torch.stack([torch.ones_like(right), right, right_object], -1)  # (B, T, 3)
    rows = [counts[(kind == number) & (word_nodes >= 0)].sum(0) for number in range(len(KINDS))]
    return torch.stack(rows)


def random_relevance(index: Tensor, words: int, nodes: int) -> Tensor:
    """(B, T, N) of numbers that know nothing: hashes (splitmix64) of sample, word and node, whatever the batch is."""
    place = torch.arange(words, device=index.device)[:, None] * 4096 + torch.arange(nodes, device=index.device)
    mixed = (index.long()[:, None, None] << 32) + place + 1
    mixed = mixed * -7046029254386353131  # wraps round, as unsigned numbers of 64 bits do
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        mixed = (mixed ^ (mixed >> shift & (1 << 64 - shift) - 1)) * factor
    return (mixed >> 11 & (1 << 53) - 1).double()


class WordGrounding:
    """The counts of `grounding_counts` by method, collected over batches and processes, beside those of chance."""

    def __init__(self) -> None:
        self._counts: dict[str, Tensor] = {}

    def add(self, method: str, relevance: Tensor, word_nodes: Tensor, node_types: Tensor, mask: Tensor) -> None:
        """Add a batch as a method explains it, see `grounding_counts`."""
        self._count(method, grounding_counts(relevance, word_nodes, node_types, mask))

    def add_chance(self, word_nodes: Tensor, node_types: Tensor, mask: Tensor) -> None:
        """Add what a node drawn at random would score: 1/N, and the share of nodes that are of the right object."""
        even = torch.zeros(*word_nodes.shape, mask.shape[1], device=mask.device)
        self.add(CHANCE, even, word_nodes, node_types, mask)

    def _count(self, method: str, counts: Tensor) -> None:
        before = self._counts.get(method)
        counts = counts.detach().cpu()
        self._counts[method] = counts if before is None else before + counts

    def table(self) -> dict[str, dict[str, float]]:
        """The numbers of each method over all processes, see `grounding_numbers`; a collective call.

        Empty where no word speaks of a node.
        """
        parts: list[dict[str, Tensor]] = [self._counts]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            parts = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, self._counts)
        methods: Iterable[str] = dict.fromkeys(method for part in parts for method in part)
        summed = {method: sum(part[method] for part in parts if method in part) for method in methods}
        return {method: grounding_numbers(counts) for method, counts in summed.items() if counts[:, 0].sum() > 0}


def grounding_numbers(counts: Tensor) -> dict[str, float]:
    """words: how many speak of a node; node: the share whose most relevant node that is; object: whose most relevant
    node is at least of the same object; objects, attributes, relations: `node` of the words of such nodes, where there
    are some. counts: of `grounding_counts`."""
    words, right, right_object = counts.sum(0).tolist()
    numbers: dict[str, float] = {"words": round(words), "node": right / words, "object": right_object / words}
    for kind, (of_kind, right_of_kind, _) in zip(KINDS, counts.tolist(), strict=True):
        if of_kind:
            numbers[kind] = right_of_kind / of_kind
    return numbers
