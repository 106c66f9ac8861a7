"""CLIP's tokens and pictures."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_xai.nets.clip_inputs import MEAN, STD, CLIPTokenizer, byte_letters, clean, clip_preprocess

# joined in this order of preference
MERGES = ["c a", "ca t</w>", "e b", "z eb", "r a</w>", "zeb ra</w>", "a a", "ã ģ", "' s</w>"]
FIRST = 512  # number of the first merge: each byte comes before, alone and at the end of a word


@pytest.fixture
def tokenizer(tmp_path) -> CLIPTokenizer:
    file = tmp_path / "merges.txt"
    file.write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    return CLIPTokenizer(file)


def letter(character: str, last: bool = False) -> int:
    """The number of a one-byte letter."""
    return list(byte_letters().values()).index(character) + 256 * last


def test_merges_by_rank(tokenizer):
    start, end = FIRST + len(MERGES), FIRST + len(MERGES) + 1
    tokens = tokenizer(["a  Zebra", "cat", ""], context=8)
    zebra, cat = FIRST + MERGES.index("zeb ra</w>"), FIRST + MERGES.index("ca t</w>")
    assert tokens.tolist() == [
        [start, letter("a", last=True), zebra, end, 0, 0, 0, 0],
        [start, cat, end, 0, 0, 0, 0, 0],
        [start, end, 0, 0, 0, 0, 0, 0],
    ]
    # equal pairs are joined from the left, and a digit is always a word of its own
    assert list(tokenizer.encode("aaa")) == [FIRST + MERGES.index("a a"), letter("a", last=True)]
    assert list(tokenizer.encode("cat's 12")) == [
        cat, FIRST + MERGES.index("' s</w>"), letter("1", last=True), letter("2", last=True)
    ]  # fmt: skip


def test_words_come_back(tokenizer):
    tokens = tokenizer("zebra, ça!")[0]
    ends = (tokens == tokens.max()).int().argmax()
    words = tokenizer.words(tokens[: ends + 1])
    assert words[0] == "<|startoftext|>" and words[-1] == "<|endoftext|>"
    assert "".join(words[1:3]) == "zebra , "
    assert tokenizer.words([letter("Ã")]) == ("�",)
    with pytest.raises(ValueError, match="there is no token 9999"):
        tokenizer.words([9999])


def test_the_start_and_end_token_may_stand_in_a_text(tokenizer):
    assert list(tokenizer.encode("<|endoftext|>")) == [FIRST + len(MERGES) + 1]


def test_a_text_that_is_too_long(tokenizer):
    with pytest.raises(ValueError, match=r"'cat cat cat' has 5 tokens with its start and end, but only 4 fit"):
        tokenizer(["cat", "cat cat cat"], context=4)


def test_cleaning():
    assert clean(" a\t b\n\nc ") == "a b c"
    assert clean("fish &amp;amp; chips &lt;b&gt;") == "fish & chips <b>"
    assert clean("‘it’s’ “so”") == "'it's' \"so\""
    assert clean("ﬁne ＡＢＣ　ｄ") == "fine ABC d"
    assert clean("cafe\u0301") == "caf\u00e9"
    assert clean("naÃ¯ve cafÃ©") == "naïve café"  # UTF-8 read as Windows-1252
    assert clean("naïve café, 日本語, x²") == "naïve café, 日本語, x²"
    assert clean("a\x00b \x1b[31mred") == "ab red"


def test_vocabulary_files(tmp_path, tokenizer):
    with gzip.open(tmp_path / "merges.txt.gz", "wt", encoding="utf-8") as file:
        file.write("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    assert torch.equal(CLIPTokenizer(tmp_path / "merges.txt.gz")("zebra cat"), tokenizer("zebra cat"))
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        CLIPTokenizer(tmp_path / "missing.txt")
    (tmp_path / "story.txt").write_text("title\nonce upon a time\n")
    with pytest.raises(ValueError, match="is no list of merges"):
        CLIPTokenizer(tmp_path / "story.txt")
    (tmp_path / "broken.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="cannot be read"):
        CLIPTokenizer(tmp_path / "broken.gz")


def test_pictures_are_resized_cropped_and_normalised():
    """A picture of two halves: the crop of a wide picture keeps the middle, so the border between them stays there."""
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 50:] = (255, 0, 51)
    ours = clip_preprocess(Image.fromarray(pixels), size=20)
    assert ours.shape == (3, 20, 20)
    values = ours * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert torch.allclose(values[:, 10, 2], torch.zeros(3), atol=1e-6)
    assert torch.allclose(values[:, 10, 17], torch.tensor([1.0, 0.0, 0.2]), atol=1e-6)
    gray = clip_preprocess(Image.fromarray(pixels[..., 0]), size=20)
    assert torch.allclose(gray[0] * STD[0] + MEAN[0], gray[2] * STD[2] + MEAN[2], atol=1e-6)
