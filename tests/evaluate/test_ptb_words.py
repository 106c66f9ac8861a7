"""Words of captions as Stanford's PTBTokenizer 3.4.1 splits them; its answers are written down here."""

import pytest

from lightning_xai.evaluate.ptb_words import ptb_words


@pytest.mark.parametrize(
    "caption, words",
    [
        ("A man, riding a wave -- on top of a surfboard!", "a man riding a wave on top of a surfboard"),
        ("The dog's ball isn't red; it's blue...", "the dog 's ball is n't red it 's blue"),
        ('Two "quoted" words (and a note) & 3.5 dollars?', "two quoted words -lrb- and a note -rrb- & 3.5 dollars"),
        ("it costs $5, or 10% more", "it costs $ 5 or 10 % more"),
        (
            "Mr. Smith's dog won't jump at 5:30 p.m. on Dec. 5th",
            "mr. smith 's dog wo n't jump at 5:30 p.m. on dec. 5th",
        ),
        ("They cannot see the kids' toys in the 1950's diner.", "they can not see the kids toys in the 1950 's diner"),
        ("I'm sure he'd've she'll we've you're", "i 'm sure he 'd 've she 'll we 've you 're"),
        ("a red shirt.he wears a t-shirt,jeans and/or boots", "a red shirt.he wears a t-shirt jeans and/or boots"),
        ("what?! no!! a cat.... sleeping", "what ?! no !! a cat sleeping"),
        ("well-known U.S. city's street", "well-known u.s. city 's street"),
        ("at 10:15am on 42nd St. with 1,200.50 people", "at 10:15 am on 42nd st. with 1,200.50 people"),
        ("No. 10 bus, no one is there. No", "no. 10 bus no one is there no"),
        ("tennis – match — now “here” it’s", "tennis match now here it 's"),
        ("Newline\ninside   a caption.", "newline inside a caption"),
        ("", ""),
    ],
)
def test_captions_are_split(caption, words):
    assert ptb_words(caption) == words


def test_split_captions_stay_as_they_are():
    words = ptb_words("The man's 3-year-old dog can't jump (high) at 5 p.m., can it?")
    assert ptb_words(words) == words
