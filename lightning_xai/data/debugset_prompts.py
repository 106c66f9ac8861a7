"""Debug sets drawn by a text-to-image model: which prompts, with which seeds, how many of each.

Source: the strategies G-LLM, G-TG, G-LLM-prompt and G-TG-human-prompt of explanation-guided debugging.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lightning_xai.data.concept_listers import ConceptLister
from lightning_xai.data.concepts import ClassConcepts
from lightning_xai.data.debugset_manifest import Entry, image_path
from lightning_xai.data.token_learners import TokenLearner

PHOTO, WITH_CONCEPT = "a photo of a {subject}", "a {subject} with a {concept}"


class MissingProvider(ValueError):
    """A strategy lacks something that it needs; the message says what and how to give it."""


@dataclass(frozen=True)
class GenerationStrategy:
    """What prompts of a class are made of: its name or a learned word, alone or with concepts from a source."""

    learned_word: bool = False
    concepts: Literal["listed", "human"] | None = None


GENERATIONS = {
    "G-LLM": GenerationStrategy(),
    "G-TG": GenerationStrategy(learned_word=True),
    "G-LLM-prompt": GenerationStrategy(concepts="listed"),
    "G-TG-human-prompt": GenerationStrategy(learned_word=True, concepts="human"),
}


class Share(NamedTuple):
    """So many of a class's images show one concept, or none in particular."""

    count: int
    concept: str | None = None
    negative: str | None = None
    note: str | None = None


def image_seed(seed: int, class_name: str, number: int) -> int:
    """Seed of a class's image `number`, in [0, 2³²): the same on every machine, unlike Python's own `hash`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{class_name}/{number}".encode()).digest()[:4], "big")


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """`total` split in proportion to `weights` by largest remainder; equal remainders favour the earlier one."""
    shares = [weight * total / sum(weights) for weight in weights]
    parts = [int(share) for share in shares]
    by_remainder = sorted(range(len(parts)), key=lambda index: parts[index] - shares[index])
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


def plan_prompts(
    strategy: str,
    class_names: Sequence[str],
    count: int,
    seed: int = 0,
    lister: ConceptLister | None = None,
    learner: TokenLearner | None = None,
    training_images: Mapping[str, Sequence[str]] | None = None,
    concepts: Mapping[str, ClassConcepts] | None = None,
    provider: str | None = None,
    concepts_per_class: int = 10,
    templates: Sequence[str] | None = None,
    confounded: Literal["negative", "omit"] = "negative",
) -> list[Entry]:
    """Entries of the debug set that a generation strategy wants drawn, `count` images a class.

    Args:
        lister: for G-LLM-prompt, who lists concepts.
        learner: for G-TG and G-TG-human-prompt, who learns a word a class; `training_images` are those it learns from.
        concepts: for G-TG-human-prompt, valid and confounded concepts of each class.
        provider: what will draw the images; the manifest names it together with the sources of words and concepts.
        templates: prompts with {subject} and, with concepts, {concept}; image i has template i modulo their number.
        confounded: confounded concepts become the "negative" prompt, or are left out ("omit").

    Raises:
        MissingProvider: lister, learner or concepts are needed and were not given.
        ValueError: unknown strategy, or a template without its places.
    """
    if strategy not in GENERATIONS:
        raise ValueError(f"strategy {strategy!r} should be one of {', '.join(GENERATIONS)}.")
    if count < 1:
        raise ValueError(f"count={count} images a class should be at least 1.")
    if confounded not in ("negative", "omit"):
        raise ValueError(f"confounded={confounded!r} should be negative or omit.")
    known = GENERATIONS[strategy]
    _require(strategy, known, lister, learner, concepts)
    templates = templates or [WITH_CONCEPT if known.concepts else PHOTO]
    for template in templates:
        if "{subject}" not in template or (known.concepts and "{concept}" not in template):
            places = "{subject} and {concept}" if known.concepts else "{subject}"
            raise ValueError(f"template {template!r} of {strategy} should contain {places}.")
    sources = [provider] if provider else []
    sources += [f"words: {learner.provider}"] if known.learned_word else []
    sources += [f"concepts: {lister.provider}"] if known.concepts == "listed" else []
    entries = []
    for name in class_names:
        subject = name.replace("_", " ")
        if known.learned_word:
            subject = learner.learn(name, (training_images or {}).get(name, ()), subject)
        shares = _shares(known, name, count, lister, concepts, concepts_per_class, confounded)
        for rank, share in enumerate(each for each in shares for _ in range(each.count)):
            template = PHOTO if share.concept is None and known.concepts else templates[rank % len(templates)]
            entries.append(
                Entry(
                    path=image_path(name, strategy, rank, ".png"),
                    class_name=name,
                    strategy=strategy,
                    rank=rank,
                    prompt=template.replace("{subject}", subject).replace("{concept}", share.concept or ""),
                    negative_prompt=share.negative,
                    concept=share.concept,
                    seed=image_seed(seed, name, rank),
                    provider="; ".join(sources) or None,
                    note=share.note,
                )
            )
    return entries


def _require(
    strategy: str,
    known: GenerationStrategy,
    lister: ConceptLister | None,
    learner: TokenLearner | None,
    concepts: Mapping[str, ClassConcepts] | None,
) -> None:
    if known.concepts == "listed" and lister is None:
        raise MissingProvider(
            f"{strategy} needs a concept lister: give `--lister ConceptFile --lister.file FILE` (YAML or JSON, "
            "`class name: [concept, ...]`) or `--lister LanguageModelConcepts --lister.folder DIR` (a local model)."
        )
    if known.concepts == "human" and concepts is None:
        raise MissingProvider(
            f"{strategy} needs human concepts: give `--concepts FILE`, JSON `class name: {{valid: {{concept: weight}}, "
            "confounded: {...}}`; `lightning-xai debugset concepts` writes it from crowd tasks."
        )
    if known.learned_word and learner is None:
        raise MissingProvider(
            f"{strategy} needs a token learner: give `--learner EmbeddingFolder --learner.folder DIR` (one "
            "<class name>.safetensors a class), `--learner TextualInversion --learner.model DIR "
            "--learner.folder DIR --training_images DIR` (learns here from a local Stable Diffusion), or "
            "`--learner ClassNameToken` (the class's own name)."
        )


def _shares(
    known: GenerationStrategy,
    name: str,
    count: int,
    lister: ConceptLister | None,
    concepts: Mapping[str, ClassConcepts] | None,
    concepts_per_class: int,
    confounded: str,
) -> list[Share]:
    """How the `count` images of one class are shared by concepts."""
    if known.concepts is None:
        return [Share(count)]
    if known.concepts == "listed":
        listed = lister.list(name, concepts_per_class)
        parts = apportion([1.0] * len(listed), count)
        return [Share(part, concept) for concept, part in zip(listed, parts, strict=True)]
    of = concepts.get(name, ClassConcepts())
    negative = ", ".join(list(of.confounded)[:concepts_per_class]) if confounded == "negative" else ""
    valid = list(of.valid.items())[:concepts_per_class]
    if not valid:
        return [Share(count, negative=negative or None, note="no valid concept of this class: plain prompt")]
    parts = apportion([weight for _, weight in valid], count)
    return [Share(part, concept, negative or None) for (concept, _), part in zip(valid, parts, strict=True)]
