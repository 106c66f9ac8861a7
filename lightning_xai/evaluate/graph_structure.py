"""Whether a caption has the structure that was asked for: how many objects, attributes and relations it speaks of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

Counts = tuple[int, int, int]
KINDS = ("G_o", "G_a", "G_r")

# Words of relations, the longer ones first where one begins another.
RELATION_PHRASES = (
    "to the left of", "to the right of", "on the left of", "on the right of", "on the side of", "in the middle of",
    "of the same colour as", "of the same color as", "on top of", "in front of", "next to", "close to", "because of",
    "larger than", "smaller than", "out of", "such as", "above", "across", "against", "along", "among", "around", "at",
    "behind", "below", "beneath", "beside", "between", "by", "down", "for", "from", "has", "have", "holds", "in",
    "inside", "into", "near", "of", "off", "on", "onto", "outside", "over", "past", "rides", "through", "to", "toward",
    "towards", "under", "underneath", "up", "upon", "wearing", "wears", "with", "within", "without",
)  # fmt: skip
DETERMINERS = {
    "a", "an", "the", "this", "that", "these", "those", "his", "her", "its", "their", "some", "another", "each",
    "there",
}  # fmt: skip
COPULAS = {"is", "are", "was", "were", "be", "being"}
# A picture is what a caption is of, not what it shows.
SILENT = {"we", "see", "it", "who", "which", "while", "very", "not", "as"}
OPENINGS = (
    "this is a picture of",
    "a picture of",
    "a photo of",
    "an image of",
    "a close up of",
    "there is",
    "there are",
)
# Nouns that look like verbs.
NOUNS_IN_ING = {
    "building", "ceiling", "clothing", "evening", "morning", "painting", "railing", "something", "spring", "string",
}  # fmt: skip
CONJUNCTIONS = {"and", "or", "but", ",", ".", ";", ":"}


class CaptionGraph(NamedTuple):
    """What a caption says: objects, (object, attribute) and (subject, relation, object), each named by its word."""

    objects: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...]
    relations: tuple[tuple[str, str, str], ...]

    def counts(self) -> Counts:
        return len(self.objects), len(self.attributes), len(self.relations)


CaptionParser = Callable[[str], CaptionGraph]


class RuleParser:
    """Reads plain English captions by rules: between determiners and relations, the last word is an object.

    The words before it are its attributes, and so are words after "is" without a determiner. Relations are the given
    phrases and words in -ing; they join the object before them with the one behind. It knows no grammar beyond that:
    its numbers compare captioners with each other, not with published ones, which come from SPICE's parser.
    """

    def __init__(self, relations: Sequence[str] = RELATION_PHRASES):
        self.relations = sorted((tuple(phrase.split()) for phrase in relations), key=len, reverse=True)

    def __call__(self, caption: str) -> CaptionGraph:
        text = " ".join(caption.lower().replace(",", " , ").split()).rstrip(" .!")
        for opening in OPENINGS:
            if text.startswith(opening + " "):
                text = text[len(opening) + 1 :]
                break
        words = text.split()
        objects: list[str] = []
        attributes: list[tuple[str, str]] = []
        relations: list[tuple[str, str, str]] = []
        phrase: list[str] = []
        pending: list[str] = []
        said = ""  # the last word of structure: it tells what a phrase after it is

        def close() -> None:
            nonlocal phrase, pending
            if not phrase:
                return
            if said in COPULAS and objects and not pending:
                attributes.extend((objects[-1], word) for word in phrase)
            else:
                *described, name = phrase
                if pending and objects:
                    relations.append((objects[-1], " ".join(pending), name))
                objects.append(name)
                attributes.extend((name, word) for word in described)
                pending = []
            phrase = []

        place = 0
        while place < len(words):
            word = words[place]
            relation = self._relation_at(words, place)
            if relation:
                close()
                pending.extend(relation)
                said = "relation"
            elif word in DETERMINERS or word in COPULAS or word in CONJUNCTIONS:
                close()
                if word in CONJUNCTIONS:
                    pending = []
                said = word
            elif word not in SILENT:
                phrase.append(word)
            place += len(relation) or 1
        close()
        return CaptionGraph(tuple(objects), tuple(attributes), tuple(relations))

    def _relation_at(self, words: Sequence[str], place: int) -> Sequence[str]:
        for phrase in self.relations:
            if tuple(words[place : place + len(phrase)]) == phrase:
                return phrase
        word = words[place]
        # "laughing woman" is no relation: a participle relates only what stands before it
        looks_like_verb = len(word) > 4 and word.endswith("ing") and word not in NOUNS_IN_ING
        return (word,) if looks_like_verb and place > 0 and words[place - 1] not in DETERMINERS else ()


def structure_difference(spoken: Counts, wanted: Counts) -> dict[str, float]:
    """Absolute difference in the numbers of objects (G_o), attributes (G_a) and relations (G_r); G is their mean.

    spoken, wanted: `CaptionGraph.counts` of a caption and of its reference or graph; 0 is best. A corpus scores the
    mean of its captions. Source: the graph structure metric of Chen et al., "Say As You Wish" (2020), whose code was
    never published.
    """
    by_kind = {kind: float(abs(a - b)) for kind, a, b in zip(KINDS, spoken, wanted, strict=True)}
    return {"G": sum(by_kind.values()) / len(KINDS), **by_kind}
