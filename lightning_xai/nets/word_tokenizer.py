"""Texts of few words as token numbers, a number a word."""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_xai.nets.clip_inputs import END, START

WORDS = re.compile(r"\w+|[^\w\s]")


class WordTokenizer:
    """A token for each of `vocabulary`'s words, lower-cased, and for start and end of a text, the two last numbers.

    For small worlds whose every word is known; raises ValueError for less than two words, or a word given twice.
    """

    def __init__(self, vocabulary: Sequence[str]):
        words = [word.lower() for word in vocabulary]
        twice = [word for word, count in Counter(words).items() if count > 1]
        if len(words) < 2 or twice:
            raise ValueError(
                f"a vocabulary holds at least two words, each once, but {twice[0]!r} comes twice"
                if twice
                else f"a vocabulary holds at least two words, but {list(vocabulary)} has {len(words)}"
            )
        self.words_by_number = [*words, START, END]
        self.numbers = {word: number for number, word in enumerate(self.words_by_number)}

    def __len__(self) -> int:
        return len(self.words_by_number)

    def __call__(self, texts: str | Sequence[str], context: int) -> Tensor:
        """Token numbers (B, context), zero padded; raises ValueError for a text that is too long or has other words."""
        texts = [texts] if isinstance(texts, str) else texts
        tokens = torch.zeros(len(texts), context, dtype=torch.int64)
        for row, text in zip(tokens, texts, strict=True):
            words = WORDS.findall(text.lower())
            unknown = [word for word in words if word not in self.numbers]
            if unknown:
                known = ", ".join(self.words_by_number[:-2])
                raise ValueError(f"the text {text!r} has the word {unknown[0]!r}, but this network reads only {known}")
            if len(words) + 2 > context:
                raise ValueError(
                    f"the text {text!r} has {len(words) + 2} tokens with its start and end, but only {context} fit: "
                    "shorten it."
                )
            said = [START, *words, END]
            row[: len(said)] = torch.tensor([self.numbers[word] for word in said])
        return tokens

    def words(self, tokens: Tensor | Sequence[int]) -> tuple[str, ...]:
        """What each token says, a space behind each word."""
        said = [self.words_by_number[int(token)] for token in tokens]
        return tuple(word if word in (START, END) else f"{word} " for word in said)
