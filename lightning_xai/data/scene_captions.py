"""Sentences about a scene, each word tied to the object that it speaks of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_xai.data.scene import Scene, SceneObject, SceneRecipe
from lightning_xai.data.scene_relations import Relation, relations

RELATION_WORDS = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "above",
    "below": "below",
    "larger than": "larger than",
    "smaller than": "smaller than",
    "same colour as": "of the same colour as",
    "occludes": "in front of",
}
# {0} and {2} stand for the two objects, {1} for the words of their relation.
RELATION_TEMPLATES = ("{0} {1} {2}", "{0} is {1} {2}", "there is {0} {1} {2}", "we see {0} {1} {2}")
LIST_TEMPLATES = ("{0}", "there is {0}", "a picture of {0}")
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

Spoken = list[tuple[str, int]]


@dataclass(frozen=True)
class Caption:
    """A sentence: `words`, and for each word the number of the object in `objects` it speaks of, -1 for none.

    `relation` is what the sentence states, None for a mere list.
    """

    words: tuple[str, ...]
    objects: tuple[int, ...]
    relation: Relation | None = None

    @property
    def text(self) -> str:
        return " ".join(self.words)


def plural(noun: str) -> str:
    """More than one of `noun`."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def number_word(count: int) -> str:
    """`count` in words up to ten, in digits beyond."""
    return NUMBER_WORDS[count] if count < len(NUMBER_WORDS) else str(count)


def adjectives(item: SceneObject) -> list[str]:
    """Colour and, unless it is solid, texture."""
    return [item.colour] if item.texture == "solid" else [item.colour, item.texture]


def noun_phrase(scene: Scene, which: int) -> Spoken:
    """ "a red striped star", each word tied to object `which`."""
    words = [*adjectives(scene.objects[which]), scene.objects[which].shape]
    article = "an" if words[0][0] in "aeiou" else "a"
    return [(word, which) for word in (article, *words)]


def describe_relation(scene: Scene, relation: Relation, template: int = 0) -> Caption:
    """State `relation` in the words of `RELATION_TEMPLATES[template]`, the subject first."""
    parts = {
        "{0}": noun_phrase(scene, relation.subject),
        "{1}": [(word, -1) for word in RELATION_WORDS[relation.name].split()],
        "{2}": noun_phrase(scene, relation.object),
    }
    return _filled(RELATION_TEMPLATES[template], parts, relation)


def describe_objects(scene: Scene, which: tuple[int, ...] | None = None, template: int = 0) -> Caption:
    """List the objects `which` (default: all, from left to right) in that order."""
    if which is None:
        which = tuple(sorted(range(len(scene.objects)), key=lambda number: scene.objects[number].x))
    return _filled(LIST_TEMPLATES[template], {"{0}": _joined([noun_phrase(scene, number) for number in which])})


def describe_counts(scene: Scene, template: int = 0) -> Caption:
    """Say how many there are of each shape: "two stars and one circle", in the order of the first one drawn."""
    members: dict[str, list[int]] = {}
    for number, item in enumerate(scene.objects):
        members.setdefault(item.shape, []).append(number)
    phrases: list[Spoken] = []
    for shape, numbers in members.items():
        # A word that speaks of several objects is tied to one only where there is just one.
        owner = numbers[0] if len(numbers) == 1 else -1
        noun = shape if len(numbers) == 1 else plural(shape)
        phrases.append([(number_word(len(numbers)), owner), (noun, owner)])
    return _filled(LIST_TEMPLATES[template], {"{0}": _joined(phrases)})


def captions(scene: Scene, count: int = 5) -> tuple[Caption, ...]:
    """`count` different captions of `scene`, the same ones each time; fewer where there is less to say.

    The first lists all objects, the second counts them, the others state relations in changing words.
    """
    rng = np.random.default_rng(np.random.SeedSequence([scene.noise_seed, 1]))
    said = [
        describe_objects(scene, template=int(rng.integers(len(LIST_TEMPLATES)))),
        describe_counts(scene, template=int(rng.integers(len(LIST_TEMPLATES)))),
    ]
    known = relations(scene)
    for number in rng.permutation(len(known))[: max(count - 2, 0)]:
        said.append(describe_relation(scene, known[number], int(rng.integers(len(RELATION_TEMPLATES)))))
    return tuple({caption.text: caption for caption in said[:count]}.values())


def caption_vocabulary(recipe: SceneRecipe) -> list[str]:
    """All words, sorted, that captions of scenes of `recipe` can hold."""
    words = {"a", "an", "and", ",", *recipe.colours, *recipe.textures} - {"solid"}
    for phrase in (*RELATION_WORDS.values(), *RELATION_TEMPLATES, *LIST_TEMPLATES):
        words.update(word for word in phrase.split() if not word.startswith("{"))
    for shape in recipe.shapes:
        words.update((shape, plural(shape)))
    words.update(number_word(count) for count in range(1, recipe.max_objects + 1))
    return sorted(words)


def _joined(phrases: list[Spoken]) -> Spoken:
    """ "x , y and z"."""
    spoken: Spoken = []
    for number, phrase in enumerate(phrases):
        if number:
            spoken.append(("and" if number == len(phrases) - 1 else ",", -1))
        spoken.extend(phrase)
    return spoken


def _filled(template: str, parts: dict[str, Spoken], relation: Relation | None = None) -> Caption:
    spoken: Spoken = []
    for word in template.split():
        spoken.extend(parts.get(word, [(word, -1)]))
    return Caption(tuple(word for word, _ in spoken), tuple(owner for _, owner in spoken), relation)
