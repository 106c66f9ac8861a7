"""Beam search against a search by lists."""

import pytest
import torch

from lightning_xai.nets.beam_search import ENDED, beam_search

END = 1


def chain(samples=3, words=5, seed=0):
    """Log-probabilities of a first word (B, V) and of words after words (B, V, V)."""
    random = torch.Generator().manual_seed(seed)
    first = torch.randn(samples, words, generator=random).double().log_softmax(-1)
    return first, (2 * torch.randn(samples, words, words, generator=random).double()).log_softmax(-1)


def search(first, after, width, pool, max_words):
    """`beam_search` where the next word depends on the last one, whichever beam that was in."""
    spoken = None

    def advance(words, previous):
        nonlocal spoken
        sample = torch.arange(len(first)).repeat_interleave(width)
        if spoken is None:
            assert torch.equal(previous, sample)  # at first the samples are numbered
            history = words[:, None]
        else:
            history = torch.cat([spoken[previous], words[:, None]], 1)
        spoken = history
        return after[sample, words]

    return beam_search(first, advance, width, pool, max_words, END)


def by_lists(first, after, width, pool, max_words):
    """Sentences of one sample: [(score, words)], best first, with lists alone."""
    beams = sorted(((value, [word]) for word, value in enumerate(first.tolist())), reverse=True)[:width]
    found = []
    for step in range(1, max_words):
        longer = []
        for total, words in beams:
            likely = sorted(((v, w) for w, v in enumerate(after[words[-1]].tolist())), reverse=True)[:width]
            longer += [(total + value, [*words, word]) for value, word in likely]
        beams = sorted(longer, reverse=True)[:width]
        for i, (total, words) in enumerate(beams):
            if (words[-1] == END or step == max_words - 1) and len(found) < pool:
                found.append((total / len(words), words))
            if words[-1] == END:
                beams[i] = (ENDED, words)
    return sorted(found, key=lambda each: -each[0])


@pytest.mark.parametrize("width, pool, max_words", [(1, 1, 4), (2, 2, 5), (3, 5, 6), (5, 2, 3), (3, 3, 2)])
@pytest.mark.parametrize("seed", range(4))
def test_sentences_are_those_of_lists(width, pool, max_words, seed):
    first, after = chain(seed=seed)
    beams = search(first, after, width, pool, max_words)
    assert beams.words.shape == beams.logprobs.shape == (3, pool, max_words)
    for sample in range(3):
        expected = by_lists(first[sample], after[sample], width, pool, max_words)
        assert beams.counts[sample] == len(expected)
        for slot, (score, words) in enumerate(expected):
            assert beams.words[sample, slot].tolist() == words + [-1] * (max_words - len(words))
            assert beams.scores[sample, slot] == pytest.approx(score)
            if score > ENDED / max_words / 2:
                assert beams.logprobs[sample, slot].sum() == pytest.approx(score * len(words))
        assert beams.scores[sample, len(expected) :].isneginf().all()


@pytest.mark.parametrize("name, value", [("width", 0), ("pool", 0), ("max_words", 0), ("width", 6)])
def test_numbers_that_make_no_sense(name, value):
    numbers = {"width": 2, "pool": 2, "max_words": 3} | {name: value}
    with pytest.raises(ValueError, match=f"{name}={value}: .*(at least 1|has only 5 words)"):
        search(*chain(), **numbers)


def test_one_word():
    first, after = chain()
    beams = search(first, after, 2, 3, 1)
    assert torch.equal(beams.words[:, :2, 0], first.topk(2).indices) and beams.counts.tolist() == [2, 2, 2]
