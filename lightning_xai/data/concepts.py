"""Concepts of a class: what a classifier should look at and what misleads it, told by people about its failures.

For each failure the *model graph* says what the attribution of the wrong prediction shows, the *human graph* what
should matter. A concept that people name and the model misses is valid for the class, one that the model looks at and
people do not name is confounded.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightning_xai.data.crowd_tasks import CrowdAnswer

RELEVANT = 3.0  # ratings from here on say that the explanation does show the concept

_DETERMINERS = re.compile(
    r"^(?:(?:a|an|the|this|that|these|those|some|any|each|every|its|his|her|their|my|our)\s+|(?:a|an|the)$)"
)
_NUMBERS = {"two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "many", "several"}
_NOT_PLURAL = ("ss", "us", "is")
_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "people": "person",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "geese": "goose",
    "knives": "knife",
    "shelves": "shelf",
    "bookshelves": "bookshelf",
    "leaves": "leaf",
    "loaves": "loaf",
    "scarves": "scarf",
    "wolves": "wolf",
    "wives": "wife",
    "lives": "life",
    "buses": "bus",
    "gases": "gas",
    "lenses": "lens",
    "glasses": "glasses",
    "scissors": "scissors",
    "trousers": "trousers",
    "jeans": "jeans",
    "shorts": "shorts",
    "clothes": "clothes",
    "stairs": "stairs",
    "series": "series",
    "species": "species",
    "gas": "gas",
    "lens": "lens",
    "movies": "movie",
    "cookies": "cookie",
    "shoes": "shoe",
    "toes": "toe",
    "axes": "axe",
}


def singular(word: str) -> str:
    """The singular of an English noun by rule, with the irregular ones that pictures show."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) < 4 or not word.endswith("s") or word.endswith(_NOT_PLURAL):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "toes")):
        return word[:-2]
    return word[:-1]


def normalise(term: str, noun: bool = True) -> str:
    """Lower case, one blank between words, without determiners; a noun that is not counted in the singular."""
    text = re.sub(r"[\s_]+", " ", term).strip(" .\"'").lower()
    while (shorter := _DETERMINERS.sub("", text)) != text:
        text = shorter
    if not noun or not text:
        return text
    *first, last = text.split(" ")
    counted = bool(_NUMBERS.intersection(first)) or any(word.isdigit() for word in first)
    return " ".join([*first, last if counted else singular(last)])


def concept_of(answer: CrowdAnswer, objects: Iterable[str] = ()) -> str:
    """The words of one answer: `bus`, `red bus`, `man riding bus`; "" where nothing is left of it.

    Attribute and object are typed in either order; the one that is among `objects` is taken as the object, the first
    term if both or neither are.
    """
    if len(answer.terms) == 2:
        first, second = (normalise(term) for term in answer.terms)
        known = set(objects)
        if second in known and first not in known:
            first, second = second, first
            attribute = answer.terms[0]
        else:
            attribute = answer.terms[1]
        words = [normalise(attribute, noun=False), first]
    elif len(answer.terms) == 3:
        subject, relation, target = answer.terms
        words = [normalise(subject), normalise(relation, noun=False), normalise(target)]
    else:
        words = [normalise(term) for term in answer.terms]
    return " ".join(word for word in words if word)


def scene_graphs(answers: Iterable[CrowdAnswer]) -> dict[str, dict[str, float | None]]:
    """The scene graph of each image: its concepts with the highest rating that one of their answers was given."""
    answers = list(answers)
    objects = {normalise(answer.terms[0]) for answer in answers if answer.kind == "object"}
    graphs: dict[str, dict[str, float | None]] = {}
    for answer in answers:
        graph, concept = graphs.setdefault(answer.image, {}), concept_of(answer, objects)
        if concept:
            ratings = [rating for rating in (graph.get(concept), answer.rating) if rating is not None]
            graph[concept] = max(ratings, default=None)
    return graphs


@dataclass(frozen=True)
class ClassConcepts:
    """Concepts of one class with their weights, the number of failures that speak for each, heaviest first."""

    valid: dict[str, float] = field(default_factory=dict)
    confounded: dict[str, float] = field(default_factory=dict)


def class_concepts(
    model: Iterable[CrowdAnswer], human: Iterable[CrowdAnswer], class_of: Mapping[str, str], keep: int = 10
) -> dict[str, ClassConcepts]:
    """Valid and confounded concepts of each class from its failures x, with model graph M(x) and human graph H(x).

    v(k) = #{x: k ∈ H(x) and (k ∉ M(x) or its rating < 3)};  u(k) = #{x: k ∈ M(x), its rating ≥ 3, k ∉ H(x)}.
    A failure without an answer in one of the graphs is left out, and so is a model's answer without a rating.

    Args:
        model: answers on the attribution of the wrong predictions.
        human: answers of the rationale task.
        class_of: class of each failure, by image name without ending.
        keep: so many of each, by weight, equal ones in alphabetical order.
    """
    model_graphs, human_graphs = scene_graphs(model), scene_graphs(human)
    valid: dict[str, Counter[str]] = {}
    confounded: dict[str, Counter[str]] = {}
    for image, name in class_of.items():
        if image not in model_graphs or image not in human_graphs:
            continue
        meant = set(human_graphs[image])
        rated = {concept: rating for concept, rating in model_graphs[image].items() if rating is not None}
        seen = {concept for concept, rating in rated.items() if rating >= RELEVANT}
        valid.setdefault(name, Counter()).update(meant - seen)
        confounded.setdefault(name, Counter()).update(seen - meant)
    return {name: ClassConcepts(_heaviest(valid[name], keep), _heaviest(confounded[name], keep)) for name in valid}


def _heaviest(weights: Mapping[str, float], keep: int) -> dict[str, float]:
    ordered = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    return {concept: float(weight) for concept, weight in ordered[:keep]}


def write_concepts(file: str | os.PathLike, concepts: Mapping[str, ClassConcepts]) -> None:
    """Write `{class: {"valid": {concept: weight}, "confounded": {concept: weight}}}`, a file that people may edit."""
    content = {name: {"valid": of.valid, "confounded": of.confounded} for name, of in concepts.items()}
    Path(file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_concepts(file: str | os.PathLike) -> dict[str, ClassConcepts]:
    """The counterpart of `write_concepts`; `valid` and `confounded` may also be lists, whose members weigh the same.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another form, or a weight is not a positive number.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise FileNotFoundError(
            f"{file}: cannot be read ({error.strerror}); give the concepts of each class."
        ) from None
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error}).") from None
    if not isinstance(content, dict) or not all(
        isinstance(of, dict) and of.keys() <= {"valid", "confounded"} for of in content.values()
    ):
        raise ValueError(f'{file}: should map each class to {{"valid": {{concept: weight}}, "confounded": {{...}}}}.')
    return {
        name: ClassConcepts(**{key: _weights(given, f"{file}: {key} of class {name!r}") for key, given in of.items()})
        for name, of in content.items()
    }


def _weights(given: object, where: str) -> dict[str, float]:
    if isinstance(given, list):
        given = {str(concept): 1.0 for concept in given}
    if not isinstance(given, dict):
        raise ValueError(f"{where} should be a mapping of concepts to weights or a list of concepts, but is {given!r}.")
    for concept, weight in given.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise ValueError(f"{where}: the weight of {concept!r} should be a positive number, but is {weight!r}.")
    return _heaviest(given, len(given))
