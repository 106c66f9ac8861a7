"""Questions about a scene, their answers, and the objects whose pixels decide each answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from lightning_xai.data.scene import Scene, SceneObject, SceneRecipe
from lightning_xai.data.scene_captions import RELATION_WORDS, plural
from lightning_xai.data.scene_relations import INVERSES, holds, occluded_share

ATTRIBUTES = ("colour", "texture", "shape")
_ASKED_RELATIONS = tuple(name for name in RELATION_WORDS if name != "same colour as")


@dataclass(frozen=True)
class Question:
    """A question about one scene, with its answer.

    `evidence` numbers the objects that decide it: those that the question speaks of or that the answer counts. It is
    empty where the answer rests on what is *not* there ("no" to "is there", a count of 0).
    """

    kind: str
    text: str
    answer: str
    evidence: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """What objects are picked out by; None leaves an attribute open."""

    colour: str | None = None
    texture: str | None = None
    shape: str | None = None

    def fits(self, item: SceneObject) -> bool:
        """Whether `item` has all the attributes that are given."""
        return all(wanted in (None, getattr(item, name)) for name, wanted in vars(self).items())

    def text(self, several: bool = False) -> str:
        """ "red striped star"; "thing" where the shape is open."""
        noun = self.shape or "thing"
        return " ".join(word for word in (self.colour, self.texture, plural(noun) if several else noun) if word)


def matching(scene: Scene, description: Description) -> tuple[int, ...]:
    """Numbers of the objects of `scene` that `description` fits."""
    return tuple(number for number, item in enumerate(scene.objects) if description.fits(item))


def evidence_mask(question: Question, visible: np.ndarray) -> np.ndarray:
    """The pixels (h, w) bool that decide `question`, from the visible masks (N, h, w) of its scene's objects."""
    return visible[list(question.evidence)].any(0)


def answer_vocabulary(recipe: SceneRecipe) -> list[str]:
    """All answers, sorted, that questions about scenes of `recipe` can have."""
    counts = (str(count) for count in range(recipe.max_objects + 1))
    return sorted({"yes", "no", *counts, *recipe.colours, *recipe.textures, *recipe.shapes})


def existence_questions(scene: Scene, recipe: SceneRecipe) -> Iterator[Question]:
    """ "is there a red star?" for each colour and shape, together and alone."""
    for description in _descriptions(recipe):
        found = matching(scene, description)
        article = "an" if description.text()[0] in "aeiou" else "a"
        yield Question("existence", f"is there {article} {description.text()}?", _yes(bool(found)), found)


def count_questions(scene: Scene, recipe: SceneRecipe) -> Iterator[Question]:
    """ "how many stars are there?" for each colour and shape, together and alone, and for all things."""
    for description in (Description(), *_descriptions(recipe)):
        found = matching(scene, description)
        yield Question("count", f"how many {description.text(True)} are there?", str(len(found)), found)


def attribute_questions(scene: Scene) -> Iterator[Question]:
    """ "what colour is the striped star?" about objects that the other two attributes, or one of them, pick out."""
    for number, item in enumerate(scene.objects):
        for asked in ATTRIBUTES:
            others = {name: getattr(item, name) for name in ATTRIBUTES if name != asked}
            for given in ({}, *({name: value} for name, value in others.items()), others):
                description = Description(**given)
                if given and matching(scene, description) == (number,):
                    text = f"what {asked} is the {description.text()}?"
                    yield Question("attribute", text, getattr(item, asked), (number,))


def relation_questions(scene: Scene) -> Iterator[Question]:
    """ "is the red star above the blue circle?", and "what shape is above the red star?" where only one object is."""
    names = _unique_names(scene)
    for (a, name_a), (b, name_b) in permutations(names.items(), 2):
        for relation in _ASKED_RELATIONS:
            truth = _clear_truth(scene, a, relation, b)
            if truth is not None:
                text = f"is the {name_a} {RELATION_WORDS[relation]} the {name_b}?"
                kind = "comparison" if relation in ("larger than", "smaller than") else "relation"
                yield Question(kind, text, _yes(truth), (a, b))
    for (b, name_b), relation in product(names.items(), _ASKED_RELATIONS):
        truths = {a: _clear_truth(scene, a, relation, b) for a in range(len(scene.objects)) if a != b}
        subjects = [a for a, truth in truths.items() if truth]
        if len(subjects) == 1 and None not in truths.values():
            text = f"what shape is {RELATION_WORDS[relation]} the {name_b}?"
            yield Question("relation", text, scene.objects[subjects[0]].shape, (subjects[0], b))


def comparison_questions(scene: Scene, recipe: SceneRecipe) -> Iterator[Question]:
    """ "are there more stars than circles?" and "do the star and the circle have the same colour?"."""
    for first, second in permutations(recipe.shapes, 2):
        these, those = matching(scene, Description(shape=first)), matching(scene, Description(shape=second))
        if these or those:
            text = f"are there more {plural(first)} than {plural(second)}?"
            yield Question("comparison", text, _yes(len(these) > len(those)), these + those)
    by_shape = {item.shape: matching(scene, Description(shape=item.shape)) for item in scene.objects}
    single = {shape: numbers[0] for shape, numbers in by_shape.items() if len(numbers) == 1}
    for (first, a), (second, b) in permutations(single.items(), 2):
        same = scene.objects[a].colour == scene.objects[b].colour
        yield Question("comparison", f"do the {first} and the {second} have the same colour?", _yes(same), (a, b))


def questions(scene: Scene, recipe: SceneRecipe, per_kind: int = 2) -> tuple[Question, ...]:
    """Up to `per_kind` different questions of each kind, the same ones each time.

    Of each kind an answer is drawn first and then a question that has it: "no" and 0, which most questions would have,
    come no more often than the scene's other answers.
    """
    rng = np.random.default_rng(np.random.SeedSequence([scene.noise_seed, 2]))
    by_kind: dict[str, dict[str, list[Question]]] = {}
    for question in (
        *existence_questions(scene, recipe),
        *count_questions(scene, recipe),
        *attribute_questions(scene),
        *relation_questions(scene),
        *comparison_questions(scene, recipe),
    ):
        by_kind.setdefault(question.kind, {}).setdefault(question.answer, []).append(question)
    chosen: list[Question] = []
    for by_answer in by_kind.values():
        for _ in range(per_kind):
            answers = [answer for answer, left in by_answer.items() if left]
            if answers:
                left = by_answer[answers[rng.integers(len(answers))]]
                chosen.append(left.pop(rng.integers(len(left))))
    return tuple(chosen)


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _descriptions(recipe: SceneRecipe) -> Iterator[Description]:
    for colour, shape in product((None, *recipe.colours), (None, *recipe.shapes)):
        if colour or shape:
            yield Description(colour=colour, shape=shape)


def _unique_names(scene: Scene) -> dict[int, str]:
    """The shortest description in words of each object that has one of its own."""
    names: dict[int, str] = {}
    for number, item in enumerate(scene.objects):
        for given in (
            Description(shape=item.shape),
            Description(colour=item.colour, shape=item.shape),
            Description(item.colour, item.texture, item.shape),
        ):
            if matching(scene, given) == (number,):
                names[number] = given.text()
                break
    return names


def _clear_truth(scene: Scene, a: int, relation: str, b: int) -> bool | None:
    """Whether the relation holds from `a` to `b`; None where a person would hesitate."""
    if holds(scene, a, relation, b):
        return True
    if relation == "occludes":
        return False if occluded_share(scene, a, b) == 0 else None
    return False if holds(scene, a, INVERSES[relation], b) else None
