"""Words and the nodes that have their names."""

import pytest

from lightning_xai.data.named_words import words_of_names


@pytest.mark.parametrize(
    "sentence, names, expected",
    [
        ("a big red dog chases the cat", ("dog", "big", "red", "cat", "chases"), [-1, 1, 2, 0, 4, -1, 3]),
        ("A Dog near a fire hydrant", ("dog", "fire hydrant", "fire", "near"), [-1, 0, 3, -1, 1, 1]),
        ("fire near a fire hydrant", ("fire", "fire hydrant"), [0, -1, -1, 1, 1]),
        ("a dog and a dog", ("dog", "dog"), [-1] * 5),  # which is which?
        ("a dog sees a dog", ("dog", "cat"), [-1, 0, -1, -1, 0]),
        ("dogs", ("dog", ""), [-1]),
        ("top of a", ("on top of a",), [-1, -1, -1]),
        ("red red red", ("red red", "red"), [0, 0, 0]),
        ("", ("dog",), []),
    ],
)
def test_names_stand_in_the_sentence(sentence, names, expected):
    assert words_of_names(sentence.split(), names) == expected
