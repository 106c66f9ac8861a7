"""Scenes with a trap: one object whose shape is the class, and a cue beside it that comes along with the class.

The cue is a small mark in a corner, as a photographer's watermark, or the pattern of the background. The *strength* of
a split is the share of its pictures that show the cue of their own class on purpose; the others show one drawn evenly
from all classes. At strength 0 the cue says nothing about the class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lightning_xai.data.scene import COLOURS, TEXTURES, Distractor, Scene, SceneRecipe, sample_scene

MOST_PICTURES = 1_000_000  # of a split: the scenes behind them are those of the next one
CUES = ("mark", "background")
# What people call a cue whichever class it goes with; the first is how a prompt would say it.
CUE_WORDS = {"mark": ("letter in the corner", "letter", "watermark"), "background": ("background pattern", "pattern")}


class Mark(NamedTuple):
    """One stroke of a palette colour through `points` in a square of side 1."""

    name: str
    colour: str
    points: tuple[tuple[float, float], ...]


# Letters that can be drawn in one stroke and that resemble none of the shapes.
MARKS: tuple[Mark, ...] = (
    Mark("red L", "red", ((0.2, 0.0), (0.2, 1.0), (0.8, 1.0))),
    Mark("yellow V", "yellow", ((0.0, 0.0), (0.5, 1.0), (1.0, 0.0))),
    Mark("cyan Z", "cyan", ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))),
    Mark("green N", "green", ((0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (1.0, 0.0))),
    Mark("pink U", "pink", ((0.1, 0.0), (0.1, 1.0), (0.9, 1.0), (0.9, 0.0))),
    Mark("blue W", "blue", ((0.0, 0.0), (0.25, 1.0), (0.5, 0.2), (0.75, 1.0), (1.0, 0.0))),
    Mark("orange S", "orange", ((1.0, 0.0), (0.0, 0.0), (0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0))),
    Mark("red I", "red", ((0.5, 0.0), (0.5, 1.0))),
)


class Pattern(NamedTuple):
    """A background: its kind, angle in degrees and period in pixels."""

    name: str
    kind: str
    angle: float
    period: float


PATTERNS: tuple[Pattern, ...] = (
    Pattern("upright stripes", "stripes", 0.0, 9.0),
    Pattern("level stripes", "stripes", 90.0, 9.0),
    Pattern("slanted stripes", "stripes", 45.0, 9.0),
    Pattern("fine checks", "checks", 0.0, 9.0),
    Pattern("coarse checks", "checks", 0.0, 22.0),
    Pattern("broad stripes", "stripes", 135.0, 22.0),
    Pattern("shaded wall", "gradient", 90.0, 16.0),
    Pattern("plain wall", "plain", 0.0, 16.0),
)


@dataclass(frozen=True)
class TrapRecipe:
    """What pictures with a trap are drawn from; sizes in pixels, `shapes` are the classes in the order of their labels.

    cue: "mark" or "background". Objects are drawn as in the embedded world: colour, texture and place say nothing
    about the class, nor does the background where the cue is a mark.
    """

    shapes: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "heart")
    cue: str = "mark"
    side: int = 48
    min_size: float = 22.0
    max_size: float = 34.0
    max_rotation: float = 15.0
    max_distractors: int = 1
    textures: tuple[str, ...] = TEXTURES
    backgrounds: tuple[str, ...] = ("plain", "gradient")
    mark_size: float = 8.0
    noise: float = 4.0

    def __post_init__(self) -> None:
        if self.cue not in CUES:
            raise ValueError(f"cue is {self.cue!r}, but the trap's cue is one of {', '.join(CUES)}")
        if not 2 <= len(self.shapes) <= len(MARKS):
            raise ValueError(f"shapes has {len(self.shapes)} classes, but a trap needs 2 to {len(MARKS)} of them")
        if not 4 <= self.mark_size <= self.side / 5:
            raise ValueError(
                f"mark_size is {self.mark_size}, but must lie between 4 and a fifth of the side {self.side}"
            )
        self.scenes()  # checks names and sizes

    def scenes(self, shapes: tuple[str, ...] | None = None) -> SceneRecipe:
        """The embedded world's recipe for one object of one of `shapes`."""
        return SceneRecipe(
            height=self.side,
            width=self.side,
            shapes=self.shapes if shapes is None else shapes,
            textures=self.textures,
            backgrounds=self.backgrounds,
            min_objects=1,
            max_objects=1,
            min_size=self.min_size,
            max_size=self.max_size,
            max_rotation=self.max_rotation,
            max_distractors=self.max_distractors,
            noise=self.noise,
        )

    @property
    def cue_names(self) -> tuple[str, ...]:
        """What each class's cue is called."""
        cues = MARKS if self.cue == "mark" else PATTERNS
        return tuple(cue.name for cue in cues[: len(self.shapes)])


class TrapScene(NamedTuple):
    """A scene, its class, and the class whose cue it shows (-1: it shows none)."""

    scene: Scene
    label: int
    cue: int


def sample_trap_scene(recipe: TrapRecipe, strength: float | None, seed: int, split: int, index: int) -> TrapScene:
    """Picture `index` of split number `split`: a function of its arguments alone; classes take turns.

    strength: None draws no cue at all.
    """
    if strength is not None and not 0 <= strength <= 1:
        raise ValueError(
            f"strength is {strength}, but must be a share between 0 and 1, or None for pictures without cue"
        )
    if not 0 <= index < MOST_PICTURES:
        raise ValueError(f"index is {index}, but a split has the pictures 0 to {MOST_PICTURES - 1}")
    classes = len(recipe.shapes)
    label = index % classes
    # The embedded world's test scenes from a million on: no scene of a split is one of another.
    scene = sample_scene(recipe.scenes((recipe.shapes[label],)), seed, "test", (split + 1) * MOST_PICTURES + index)
    rng = np.random.default_rng(np.random.SeedSequence([seed, split, index, 2]))
    chance, other, corner = rng.random(), int(rng.integers(classes)), int(rng.integers(4))
    cue = -1
    if strength is not None:
        cue = label if chance < strength else other
    return TrapScene(with_cue(scene, recipe, cue, corner), label, cue)


def with_cue(scene: Scene, recipe: TrapRecipe, cue: int, corner: int = 0) -> Scene:
    """`scene` with the cue of class `cue`, or with none (-1).

    A mark stands in the first corner, counted clockwise from `corner` (0: upper left), that the object leaves free;
    without one, the background is that of a plain wall.
    """
    if recipe.cue == "background":
        pattern = PATTERNS[cue] if cue >= 0 else PATTERNS[-1]
        drawn = {"kind": pattern.kind, "angle": pattern.angle, "period": pattern.period}
        return replace(scene, background=replace(scene.background, **drawn))
    if cue < 0:
        return scene
    return replace(scene, distractors=(*scene.distractors, _mark(scene, recipe, MARKS[cue], corner)))


def mark_box(scene: Scene) -> tuple[float, float, float, float] | None:
    """xyxy in pixels of the scene's mark; None without one."""
    marks = [distractor for distractor in scene.distractors if distractor.kind == "mark"]
    if not marks:
        return None
    across, down = zip(*marks[-1].points, strict=True)
    half = marks[-1].width / 2
    return min(across) - half, min(down) - half, max(across) + half, max(down) + half


def _mark(scene: Scene, recipe: TrapRecipe, mark: Mark, corner: int) -> Distractor:
    size = recipe.mark_size
    far = recipe.side - 3.0 - size
    corners = [(3.0, 3.0), (far, 3.0), (far, far), (3.0, far)]
    turned = corners[corner:] + corners[:corner]

    def room(place: tuple[float, float]) -> float:
        middle = (place[0] + size / 2, place[1] + size / 2)
        return min(math.hypot(item.x - middle[0], item.y - middle[1]) - item.reach for item in scene.objects)

    free = [place for place in turned if room(place) > size * 0.6]
    left, top = free[0] if free else max(turned, key=room)
    points = tuple((left + size * x, top + size * y) for x, y in mark.points)
    return Distractor("mark", COLOURS[mark.colour], 1.0, points, 2.6, 1.0)
