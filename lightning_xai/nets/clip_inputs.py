"""What goes into CLIP: texts as token numbers, photographs as normalised tensors."""

import gzip
import html
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

CONTEXT = 77
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
MERGES = 49152 - 256 - 2  # of the vocabulary file, which goes on with merges that no model knows
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class CLIPTokenizer:
    """Byte-pair encoding of lower-cased text between a start and an end token (Sennrich et al., ACL 2016).

    vocabulary: CLIP's list of merges, `bpe_simple_vocab_16e6.txt.gz` or a `merges.txt` in transformers' layout.
    Raises FileNotFoundError or ValueError: no such file, or no list of merges; ImportError without ftfy and regex.
    """

    def __init__(self, vocabulary: str | Path):
        try:
            import ftfy  # noqa: F401 - what `clean` will need, said before the first text
            import regex
        except ImportError as error:
            raise ImportError(
                f"reading texts for CLIP needs {error.name}: pip install 'lightning_xai[transformers]'"
            ) from error

        merges = read_merges(Path(vocabulary))
        letters = byte_letters()
        words = [*letters.values(), *(letter + WORD_END for letter in letters.values())]
        words += ["".join(merge) for merge in merges] + [START, END]
        self.pieces = regex.compile(PIECES, regex.IGNORECASE)
        self.letters = letters
        self.bytes = {letter: byte for byte, letter in letters.items()}
        self.words_by_number = words
        self.numbers = {word: number for number, word in enumerate(words)}
        self.ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.known: dict[str, tuple[str, ...]] = {}  # pieces that were split before

    def __len__(self) -> int:
        return len(self.words_by_number)

    def __call__(self, texts: str | Sequence[str], context: int = CONTEXT) -> Tensor:
        """Token numbers (B, context), zero padded; raises ValueError for a text with more tokens than fit."""
        texts = [texts] if isinstance(texts, str) else texts
        tokens = torch.zeros(len(texts), context, dtype=torch.int64)
        for row, text in zip(tokens, texts, strict=True):
            numbers = [self.numbers[START], *self.encode(text), self.numbers[END]]
            if len(numbers) > context:
                raise ValueError(
                    f"the text {text!r} has {len(numbers)} tokens with its start and end, but only {context} fit: "
                    "shorten it."
                )
            row[: len(numbers)] = torch.tensor(numbers)
        return tokens

    def encode(self, text: str) -> Iterator[int]:
        """The token numbers of a text, without start and end."""
        for piece in self.pieces.findall(clean(text).lower()):
            for part in self.split("".join(self.letters[byte] for byte in piece.encode())):
                yield self.numbers[part]

    def words(self, tokens: Tensor | Sequence[int]) -> tuple[str, ...]:
        """What each token says; a space stands where a word ends, and � for a part of a letter."""
        return tuple(self._word(int(token)) for token in tokens)

    def _word(self, number: int) -> str:
        if not 0 <= number < len(self.words_by_number):
            raise ValueError(f"there is no token {number}; tokens go from 0 to {len(self.words_by_number) - 1}")
        word = self.words_by_number[number]
        ends = word.endswith(WORD_END)
        said = bytes(self.bytes[letter] for letter in word.removesuffix(WORD_END)).decode(errors="replace")
        return said + " " if ends else said

    def split(self, piece: str) -> tuple[str, ...]:
        """The parts of a piece, by joining the pair of lowest rank until none is known."""
        if piece in self.known:
            return self.known[piece]
        if piece in (START, END):
            return (piece,)
        parts = [*piece[:-1], piece[-1] + WORD_END]
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            joined: list[str] = []
            for part in parts:
                # a part that was itself made by this merge is longer than best[0], so it cannot be joined twice
                if joined and (joined[-1], part) == best:
                    joined[-1] += part
                else:
                    joined.append(part)
            parts = joined
        self.known[piece] = tuple(parts)
        return self.known[piece]


def read_merges(file: Path) -> list[tuple[str, str]]:
    """The merges in a vocabulary file, most frequent first."""
    if not file.is_file():
        raise FileNotFoundError(f"vocabulary '{file}' does not exist: give bpe_simple_vocab_16e6.txt.gz or merges.txt.")
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            merges = [tuple(line.split()) for line in lines.read().split("\n")[1 : MERGES + 1]]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"vocabulary '{file}' cannot be read: {error}") from error
    while merges and not merges[-1]:
        merges.pop()
    if not merges or any(len(merge) != 2 for merge in merges):
        raise ValueError(f"vocabulary '{file}' is no list of merges: after its first line, each line holds two parts.")
    return merges


def byte_letters() -> dict[int, str]:
    """A printable letter for each byte: itself where it is printable, else the next free one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def clean(text: str) -> str:
    """The text as CLIP reads it: broken characters mended by ftfy, HTML entities resolved, white space collapsed."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def clip_preprocess(image: Image.Image, size: int = 224) -> Tensor:
    """A photograph as CLIP's input (3, size, size): short side resized (bicubic), centre cropped, normalised."""
    image = F.resize(image, [size], interpolation=InterpolationMode.BICUBIC)
    image = F.center_crop(image, [size, size]).convert("RGB")
    return F.normalize(F.to_dtype(F.to_image(image), torch.float32, scale=True), list(MEAN), list(STD))
