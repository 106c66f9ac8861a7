"""A token a word."""

import pytest

from lightning_xai.nets.word_tokenizer import WordTokenizer


def test_words_become_numbers_and_words_again():
    tokenizer = WordTokenizer(["a", "Red", "star", ","])
    assert len(tokenizer) == 6
    tokens = tokenizer(["A red star, a STAR", "star"], context=9)
    assert tokens.tolist() == [[4, 0, 1, 2, 3, 0, 2, 5, 0], [4, 2, 5, 0, 0, 0, 0, 0, 0]]
    assert tokenizer.words(tokens[1, :3]) == ("<|startoftext|>", "star ", "<|endoftext|>")
    assert tokenizer("star", 3).tolist() == [[4, 2, 5]]


def test_errors():
    with pytest.raises(ValueError, match="each once, but 'star' comes twice"):
        WordTokenizer(["star", "red", "Star"])
    with pytest.raises(ValueError, match="at least two words, but"):
        WordTokenizer(["star"])
    tokenizer = WordTokenizer(["a", "star"])
    with pytest.raises(ValueError, match="'a blue star' has the word 'blue', but this network reads only a, star"):
        tokenizer("a blue star", 8)
    with pytest.raises(ValueError, match="'a a star' has 5 tokens with its start and end, but only 4 fit"):
        tokenizer("a a star", 4)
