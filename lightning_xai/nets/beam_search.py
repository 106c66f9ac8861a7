"""Beam search over words, for any network that says how likely each next word is."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# What an ended beam is worth from then on: it is continued, as the reference does, but hardly ever chosen.
ENDED = -1e6


class Beams(NamedTuple):
    """The sentences found of each sample, best first; S is how many were asked for.

    words: (B, S, T), with the word that ends it, -1 behind. logprobs: (B, S, T) of each word, 0 behind. scores: (B, S)
    sum of a sentence's log-probabilities / its length, -inf where there is no sentence; about ENDED / length for one
    that goes on after an end, with which the last step fills up. counts: (B,) sentences found.
    """

    words: Tensor
    logprobs: Tensor
    scores: Tensor
    counts: Tensor


def beam_search(
    first: Tensor,
    advance: Callable[[Tensor, Tensor], Tensor],
    width: int,
    pool: int,
    max_words: int,
    end: int,
) -> Beams:
    """Sentences of the greatest mean log-probability, a beam of `width` kept at every word.

    first: (B, V) log-probabilities of the first word. advance(words, previous): those of the next (B * width, V), where
    words (B * width,) follow the beams numbered previous (B * width,) of the call before; at the first call those
    numbers are samples. A beam is done when it says `end`, or at word `max_words`, and the search ends when `pool`
    sentences of every sample are done. As in the reference an `end` that is the first word does not end its beam.
    Raises ValueError where numbers are below 1 or width exceeds the vocabulary.
    Source: asg2cap, `caption/utils/inference.py`, whose numbers these are.
    """
    for name, number in (("width", width), ("pool", pool), ("max_words", max_words)):
        if number < 1:
            raise ValueError(f"beam search with {name}={number}: it must be at least 1")
    if width > first.shape[1]:
        raise ValueError(f"beam search with width={width}: the vocabulary has only {first.shape[1]} words")
    samples, device = len(first), first.device
    total, words = first.topk(width)  # (B, width)
    history, logprobs = words[..., None], total[..., None]  # (B, width, words so far)
    previous = torch.arange(samples, device=device).repeat_interleave(width)
    start = torch.arange(0, samples * width, width, device=device)[:, None]
    found = Beams(
        torch.full((samples, pool, max_words), -1, device=device),
        first.new_zeros(samples, pool, max_words),
        first.new_full((samples, pool), -torch.inf),
        torch.zeros(samples, dtype=torch.int64, device=device),
    )
    if max_words == 1:
        return _best_first(_keep(found, torch.ones_like(words, dtype=torch.bool), history, logprobs, total))
    for step in range(1, max_words):
        likely, next_words = advance(words.flatten(), previous).topk(width)  # (B * width, width)
        totals = (likely + total.view(-1, 1)).view(samples, -1)  # (B, width * width)
        total, chosen = totals.topk(width)
        words, beam = next_words.view(samples, -1).gather(1, chosen), chosen // width
        previous = (start + beam).flatten()

        def extended(past: Tensor, new: Tensor, beam: Tensor = beam) -> Tensor:
            return torch.cat([past.take_along_dim(beam[..., None], 1), new[..., None]], 2)

        history = extended(history, words)
        logprobs = extended(logprobs, likely.view(samples, -1).gather(1, chosen))
        ended = words == end
        done = ended | (step == max_words - 1)
        found = _keep(found, done, history, logprobs, total)
        total = total.masked_fill(ended, ENDED)
        if (found.counts == pool).all():
            break
    return _best_first(found)


def _keep(found: Beams, done: Tensor, history: Tensor, logprobs: Tensor, total: Tensor) -> Beams:
    """Add the beams that are done, in their order, while there is room."""
    length = history.shape[2]
    slot = found.counts[:, None] + done.cumsum(1) - 1
    sample, beam = (done & (slot < found.scores.shape[1])).nonzero(as_tuple=True)
    slot = slot[sample, beam]
    found.words[sample, slot, :length] = history[sample, beam]
    found.logprobs[sample, slot, :length] = logprobs[sample, beam]
    found.scores[sample, slot] = total[sample, beam] / length
    counts = (found.counts + done.sum(1)).clamp(max=found.scores.shape[1])
    return found._replace(counts=counts)


def _best_first(found: Beams) -> Beams:
    scores, order = found.scores.sort(dim=1, descending=True, stable=True)
    words, logprobs = (values.take_along_dim(order[..., None], 1) for values in (found.words, found.logprobs))
    return Beams(words, logprobs, scores, found.counts)
