"""The embedded world as a text-to-image model: prompts become scenes, with the habits that such models have.

A plain class name gives what such a model knows by itself, stock pictures: one large upright object before a plain
wall. A learned word such as `<star>` stands for how the training pictures look, and brings along what they have in
common: the cue of the class, unless the negative prompt names it. Words of a prompt that say something about colour,
texture, size or cue are obeyed; others change nothing, as they often do.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lightning_xai.data.concept_listers import ConceptLister
from lightning_xai.data.image_generators import ImageGenerator
from lightning_xai.data.render_scene import render
from lightning_xai.data.scene import COLOURS, sample_scene
from lightning_xai.data.token_learners import TokenLearner, token_of
from lightning_xai.data.trap_scene import CUE_WORDS, TrapRecipe, with_cue

TEXTURE_WORDS = {"plain": "solid", "solid": "solid", "striped": "striped", "dotted": "dotted", "checked": "checked"}
DEFAULT_RECIPE = TrapRecipe()
# A picture's seed is drawn among scenes that no split of the embedded world holds.
FIRST_SCENE = 1 << 40


class EmbeddedGenerator(ImageGenerator):
    """Draws "a photo of a star" or "a <star> with a red colour" as scenes of a `TrapRecipe`.

    habit: how often a learned word brings the cue of its class, as strength of a split (see `trap_scene`).
    """

    def __init__(self, recipe: TrapRecipe = DEFAULT_RECIPE, habit: float = 0.95):
        if not 0 <= habit <= 1:
            raise ValueError(f"habit={habit} must be a share between 0 and 1")
        self.recipe, self.habit = recipe, habit

    @property
    def provider(self) -> str:
        return "embedded world"

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative_prompts: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
    ) -> list[np.ndarray]:
        """One picture (h, w, 3) a prompt. Raises ValueError for a prompt without a shape, and for another size."""
        side = self.recipe.side
        if size is not None and tuple(size) != (side, side):
            raise ValueError(f"the embedded world draws {side}x{side} pixels, but size={tuple(size)} was asked for")
        unwanted = negative_prompts or [""] * len(prompts)
        return [self._draw(*each) for each in zip(prompts, seeds, unwanted, strict=True)]

    def _draw(self, prompt: str, seed: int, negative: str) -> np.ndarray:
        shape, learned = self._subject(prompt)
        words = set(re.findall(r"[a-z]+", prompt.lower())) - {shape}
        rng = np.random.default_rng(np.random.SeedSequence([seed, 3]))
        chance, other, corner = rng.random(), int(rng.integers(len(self.recipe.shapes))), int(rng.integers(4))
        scene = sample_scene(self._style(shape, learned, words), seed, "test", FIRST_SCENE)
        label, cue = self.recipe.shapes.index(shape), -1
        if learned and not self._names_cue(negative):
            cue = label if chance < self.habit else other
        if self._names_cue(prompt):
            cue = label
        scene = with_cue(scene, self.recipe, cue, corner)
        return np.ascontiguousarray(render(scene).picture)

    def _subject(self, prompt: str) -> tuple[str, bool]:
        """The shape that a prompt names first, and whether it is meant by its learned word, which goes before all."""
        learned = {prompt.find(token_of(shape)): shape for shape in self.recipe.shapes if token_of(shape) in prompt}
        if learned:
            return learned[min(learned)], True
        plain = {shape: re.search(rf"\b{shape}(s|es)?\b", prompt.lower()) for shape in self.recipe.shapes}
        named = {found.start(): shape for shape, found in plain.items() if found}
        if named:
            return named[min(named)], False
        raise ValueError(f"the prompt {prompt!r} names none of the shapes {', '.join(self.recipe.shapes)}")

    def _style(self, shape: str, learned: bool, words: set[str]):
        """What scenes a prompt is drawn from."""
        recipe = self.recipe.scenes((shape,))
        if not learned:
            recipe = replace(
                recipe, backgrounds=("plain",), textures=("solid",), max_rotation=0.0, max_distractors=0, noise=0.0
            )
        colours = tuple(colour for colour in COLOURS if colour in words)
        textures = tuple(texture for word, texture in TEXTURE_WORDS.items() if word in words)
        middle = (recipe.min_size * recipe.max_size) ** 0.5
        return replace(
            recipe,
            colours=colours or recipe.colours,
            textures=tuple(dict.fromkeys(textures)) or recipe.textures,
            min_size=middle if "large" in words or not learned else recipe.min_size,
            max_size=middle if "small" in words else recipe.max_size,
            max_rotation=max(recipe.max_rotation, 30.0) if "tilted" in words else recipe.max_rotation,
        )

    def _names_cue(self, text: str) -> bool:
        cues = (*CUE_WORDS[self.recipe.cue], *self.recipe.cue_names)
        return any(re.search(rf"\b{re.escape(cue.lower())}s?\b", text.lower()) for cue in cues)


class EmbeddedTokens(TokenLearner):
    """Learns the word `<class name>`, which `EmbeddedGenerator` understands."""

    @property
    def provider(self) -> str:
        return "embedded world"

    def learn(self, class_name: str, images: Sequence[str], init_word: str) -> str:
        return token_of(class_name)


class EmbeddedConcepts(ConceptLister):
    """What somebody who has not seen the pictures would list for any shape: colours, patterns and sizes."""

    @property
    def provider(self) -> str:
        return "embedded world"

    def list(self, class_name: str, n: int) -> list[str]:
        surfaces = [f"{word} surface" for word in ("striped", "dotted", "checked")]
        sizes = [f"{word} size" for word in ("large", "small")]
        return [*(f"{colour} colour" for colour in COLOURS), *surfaces, *sizes][:n]
