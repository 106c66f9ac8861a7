"""Words and their numbers."""

import json

import numpy as np
import pytest

from lightning_xai.data.vocabulary import BOS, EOS, UNK, Vocabulary, read_word2int

WORDS = ["<BOS>", "<EOS>", "<UNK>", "a", "red", "dog"]


def files(folder, words=WORDS, numbers=None):
    np.save(folder / "int2word.npy", np.array(words))
    numbers = {word: number for number, word in enumerate(words)} if numbers is None else numbers
    (folder / "word2int.json").write_text(json.dumps(numbers))
    return folder / "int2word.npy", folder / "word2int.json"


def test_captions_are_numbered_between_begin_and_end():
    words = Vocabulary(WORDS)
    assert words.encode("a  red zebra", 10) == [BOS, 3, 4, UNK, EOS]
    assert words.encode("a red dog", 4) == [BOS, 3, 4, 5]  # cut: no end
    assert words.encode("", 10) == [BOS, EOS] and len(words) == 6


def test_numbers_become_a_sentence_again():
    words = Vocabulary(WORDS)
    assert words.decode([BOS, 3, 5, EOS, 4, 4]) == "a dog" and words.decode(np.array([3, 4])) == "a red"
    assert words.decode([3, BOS, 4]) == "a <BOS> red"  # a captioner may say so
    assert words.decode([EOS]) == ""


def test_published_files(tmp_path):
    words, numbers = files(tmp_path)
    assert Vocabulary.read(words, numbers).words == Vocabulary.read(words).words == tuple(WORDS)
    assert Vocabulary.read_json(numbers).words == tuple(WORDS)
    assert Vocabulary.of_words(["b", "a", "b"]).words == (*WORDS[:3], "b", "a")


def test_files_that_differ(tmp_path):
    words, numbers = files(tmp_path, numbers={**{word: i for i, word in enumerate(WORDS)}, "red": 5, "dog": 4})
    with pytest.raises(ValueError, match="differ in 2 words, the first 'dog': number 4 and 5"):
        Vocabulary.read(words, numbers)


def test_wrong_files(tmp_path):
    with pytest.raises(ValueError, match="'a' is twice"):
        Vocabulary([*WORDS, "a"])
    with pytest.raises(ValueError, match="begins with the three"):
        Vocabulary(["a"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_word2int(tmp_path / "none.json")
    for content in ("[1]", "{", '{"a": "b"}'):
        (tmp_path / "odd.json").write_text(content)
        with pytest.raises(ValueError, match=r"odd\.json: no JSON object of words"):
            read_word2int(tmp_path / "odd.json")
    (tmp_path / "gap.json").write_text('{"a": 0, "b": 2, "c": 3}')
    with pytest.raises(ValueError, match="3 words are not numbered 0 to 2"):
        Vocabulary.read_json(tmp_path / "gap.json")
