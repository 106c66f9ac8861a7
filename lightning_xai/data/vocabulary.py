"""The words that a captioner knows, by number."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_xai.data.plain_arrays import read_array

BOS, EOS, UNK = range(3)
SPECIAL = ("<BOS>", "<EOS>", "<UNK>")


class Vocabulary:
    """Words by number: 0 begins a sentence, 1 ends it, 2 stands for a word that is not here.

    Raises ValueError for fewer than three words, or for one that is there twice.
    """

    def __init__(self, words: Sequence[str]):
        self.words = tuple(words)
        self.number = {word: number for number, word in enumerate(self.words)}
        if len(self.words) < len(SPECIAL):
            raise ValueError(f"a vocabulary begins with the three words for begin, end and unknown, not {self.words}.")
        if len(self.number) < len(self.words):
            twice = next(word for number, word in enumerate(self.words) if self.number[word] != number)
            raise ValueError(f"the word {twice!r} is twice in the vocabulary of {len(self.words)} words.")

    @classmethod
    def of_words(cls, words: Iterable[str]) -> Vocabulary:
        """These words, without repetition and in their order, after the three special ones."""
        return cls(tuple(dict.fromkeys((*SPECIAL, *words))))

    @classmethod
    def read(cls, int2word: str | os.PathLike, word2int: str | os.PathLike | None = None) -> Vocabulary:
        """From `int2word.npy`, an array of words; `word2int.json`, where it is given, must say the same.

        Raises FileNotFoundError, or ValueError where the two differ.
        """
        words = as_strings(read_array(int2word))
        vocabulary = cls(words)
        if word2int is not None:
            numbers = read_word2int(word2int)
            if numbers != vocabulary.number:
                differing = sorted(
                    word
                    for word in numbers.keys() | vocabulary.number.keys()
                    if numbers.get(word) != vocabulary.number.get(word)
                )
                raise ValueError(
                    f"{word2int} and {int2word} differ in {len(differing)} words, the first {differing[0]!r}: number "
                    f"{numbers.get(differing[0])} and {vocabulary.number.get(differing[0])}; both must be of one kind."
                )
        return vocabulary

    @classmethod
    def read_json(cls, word2int: str | os.PathLike) -> Vocabulary:
        """From `word2int.json` alone. Raises FileNotFoundError, or ValueError where numbers are missing."""
        numbers = read_word2int(word2int)
        if sorted(numbers.values()) != list(range(len(numbers))):
            raise ValueError(f"{word2int}: the {len(numbers)} words are not numbered 0 to {len(numbers) - 1}.")
        return cls(sorted(numbers, key=numbers.__getitem__))

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, phrase: str, max_words: int) -> list[int]:
        """[BOS, words split at blanks, EOS], cut to `max_words` numbers (a sentence that is cut has no EOS)."""
        known = (self.number.get(word, UNK) for word in phrase.split())
        return [BOS, *known, EOS][:max_words]

    def decode(self, numbers: Iterable[int]) -> str:
        """The words up to the first EOS, without a BOS in front."""
        said = []
        for place, number in enumerate(map(int, numbers)):
            if number == EOS:
                break
            if place or number != BOS:
                said.append(self.words[number])
        return " ".join(said)


def as_strings(array) -> tuple[str, ...]:
    """The entries of a one-dimensional array of names, whatever kind of string or number they are."""
    return tuple(entry.decode("utf-8") if isinstance(entry, bytes) else str(entry) for entry in array.tolist())


def read_word2int(file: str | os.PathLike) -> dict[str, int]:
    """Word to number. Raises FileNotFoundError, or ValueError for a file that is no such thing."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the vocabulary's word2int.json.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(word): int(number) for word, number in content.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: no JSON object of words with their numbers ({error}).") from error
