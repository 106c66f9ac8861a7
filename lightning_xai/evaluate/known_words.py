"""Reading captions of a small world, all of whose words are known."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_xai.evaluate.graph_structure import DETERMINERS, CaptionGraph


class KnownWords:
    """Reads captions by lists of what can be an object, an attribute and a relation, each of one or more words.

    An attribute belongs to the object behind it, unless an article or a relation comes before that; a relation joins
    the object before it with the one behind. Other words are passed over, and so are attributes and relations without
    their objects. Raises ValueError for a word that is in two of the lists.
    """

    def __init__(self, objects: Sequence[str], attributes: Sequence[str], relations: Sequence[str] = ()):
        self.kind: dict[str, str] = {}
        for kind, words in (("object", objects), ("attribute", attributes), ("relation", relations)):
            for word in map(str.lower, words):
                if self.kind.setdefault(word, kind) != kind:
                    raise ValueError(f"{word!r} cannot be {self.kind[word]} and {kind}: leave it out of one list.")
        self.longest = max((len(phrase.split()) for phrase in self.kind), default=1)

    def __call__(self, caption: str) -> CaptionGraph:
        words = caption.lower().split()
        objects: list[str] = []
        attributes: list[tuple[str, str]] = []
        relations: list[tuple[str, str, str]] = []
        described: list[str] = []
        relation = ""
        place = 0
        while place < len(words):
            phrase, kind = self._phrase_at(words, place)
            if kind == "object":
                if relation:
                    relations.append((objects[-1], relation, phrase))
                objects.append(phrase)
                attributes.extend((phrase, word) for word in described)
                described, relation = [], ""
            elif kind == "attribute":
                described.append(phrase)
            elif kind == "relation":
                described, relation = [], phrase if objects else ""
            elif phrase in DETERMINERS:
                described = []
            place += len(phrase.split())
        return CaptionGraph(tuple(objects), tuple(attributes), tuple(relations))

    def _phrase_at(self, words: Sequence[str], place: int) -> tuple[str, str | None]:
        """The longest known phrase that begins here with its kind, or the word itself and None."""
        for count in range(self.longest, 0, -1):
            phrase = " ".join(words[place : place + count])
            if phrase in self.kind:
                return phrase, self.kind[phrase]
        return words[place], None
