"""Captions as words the way coco-caption counts them: Penn Treebank's splits, lower case, without punctuation."""

import re

# coco-caption removes these; brackets are not among them, since they come in lower case.
PUNCTUATION = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# What the tokeniser writes in plain ASCII.
REPLACED = {"…": "...", "–": "--", "—": "--", "€": "$", "£": "#", "’": "'", "‘": "`", "“": "``", "”": "''", '"': "''"}
ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|ave|blvd|rd|jr|sr|vs|etc|inc|ltd|co|corp|gen|sen|rep|gov|capt|lt|col|sgt|mt|ft|"
    "jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec"
)
SPLIT_WORDS = {"cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me",
               "lemme": "lem me", "'tis": "'t is", "'twas": "'t was"}  # fmt: skip

_TOKEN = re.compile(
    rf"""
    https?://\S+ | [\w.+-]+@[\w-]+(?:\.\w+)+                    # addresses
  | </?[a-z][^<>\s]*>                                           # tags
  | (?:[a-z]\.){{2,}} | (?:{ABBREVIATIONS})\. | no\.(?=\s*\d)   # u.s., mr., no. 4
  | \d+(?::\d+)+ | \d+(?:[.,]\d+)+(?![a-z])                     # 10:15, 1,000.5
  | -[lr][crs]b- | 'n' | '(?:tis|twas|em|n|s|ll|ve|re|d|m)\b    # also what has been split before
  | \w+(?:(?:[-/.&_]|'(?=[a-z]))\w+)*                           # words with marks inside
  | \.\.\.+ | [!?]+ | --+ | .
    """,
    re.VERBOSE,
)
_CLITICS = re.compile(r"^(.+?)((?:n't|'s|'ll|'ve|'re|'d|'m)+)$")
_CLITIC = re.compile(r"n't|'s|'ll|'ve|'re|'d|'m")


def ptb_words(caption: str) -> str:
    """The caption's words with blanks between them, to be scored by `caption_scores`.

    "It's the dog's ball, isn't it?" becomes "it 's the dog 's ball is n't it". The rules of Stanford's tokeniser for
    what captions hold: contractions, possessives, abbreviations, numbers, hyphens, brackets and quotes.
    """
    text = "".join(REPLACED.get(letter, letter) for letter in caption.lower())
    words: list[str] = []
    for token in _TOKEN.findall(text.replace("´", " ´ ")):
        words.extend(_parts(token))
    return " ".join(word for word in words if word.strip() and word not in PUNCTUATION)


def _parts(token: str) -> list[str]:
    if token in BRACKETS:
        return [BRACKETS[token]]
    if token in SPLIT_WORDS:
        return SPLIT_WORDS[token].split()
    if token.startswith("..."):
        return ["..."]
    if token.startswith("--"):
        return ["--"]
    if (found := _CLITICS.match(token)) and "://" not in token:
        return [found[1], *_CLITIC.findall(found[2])]
    return [token]
