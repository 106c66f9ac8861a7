"""The embedded world's scene: a structured, immutable value, sampled from (seed, split, index) alone.

A scene is what is true; pictures, boxes, captions, graphs and questions are views of it. Coordinates are pixels, x to
the right and y down, the centre of the upper left pixel at (0.5, 0.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lightning_xai.data.shapes import SHAPES

RGB = tuple[int, int, int]

# Okabe & Ito's palette, told apart by colour-blind eyes too, without its black.
COLOURS: dict[str, RGB] = {
    "red": (213, 94, 0),
    "orange": (230, 159, 0),
    "yellow": (240, 228, 66),
    "green": (0, 158, 115),
    "cyan": (86, 180, 233),
    "blue": (0, 114, 178),
    "pink": (204, 121, 167),
}
TEXTURES = ("solid", "striped", "dotted", "checked")
BACKGROUNDS = ("plain", "gradient", "stripes", "checks")
SPLITS = {"train": 0, "val": 1, "test": 2}

_TRIES_PER_OBJECT = 200


@dataclass(frozen=True)
class SceneObject:
    """One labelled object: `size` is the side of the upright shape's frame in pixels, `rotation` clockwise degrees."""

    shape: str
    colour: str
    texture: str
    x: float
    y: float
    size: float
    rotation: float

    @property
    def reach(self) -> float:
        """Radius in pixels of the circle about the centre that holds the whole object."""
        return SHAPES[self.shape].reach * self.size / 2


@dataclass(frozen=True)
class Distractor:
    """Unlabelled clutter behind the objects: a stroke along `points`, `width` wide, its edge `softness` pixels soft."""

    kind: str
    colour: RGB
    opacity: float
    points: tuple[tuple[float, float], ...]
    width: float
    softness: float


@dataclass(frozen=True)
class Background:
    """What lies behind everything: `kind` blends two colours along `angle` (degrees, clockwise)."""

    kind: str
    first: RGB
    second: RGB
    angle: float
    period: float


@dataclass(frozen=True)
class Scene:
    """A picture's truth: objects from the farthest to the nearest, so a later object hides an earlier one."""

    height: int
    width: int
    background: Background
    objects: tuple[SceneObject, ...]
    distractors: tuple[Distractor, ...]
    noise: float
    noise_seed: int


@dataclass(frozen=True)
class SceneRecipe:
    """What scenes are sampled from: sizes in pixels, `noise` as the standard deviation in grey levels of 255.

    An object keeps at least `min_visible` of its pixels; colour, texture and background are independent of the shape.
    Object sizes are uniform on a logarithmic scale, so that small and large ones are equally frequent.
    """

    height: int = 128
    width: int = 128
    shapes: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "heart")
    colours: tuple[str, ...] = tuple(COLOURS)
    textures: tuple[str, ...] = TEXTURES
    backgrounds: tuple[str, ...] = BACKGROUNDS
    min_objects: int = 2
    max_objects: int = 6
    min_size: float = 14.0
    max_size: float = 56.0
    max_rotation: float = 180.0
    min_visible: float = 0.4
    max_distractors: int = 5
    noise: float = 5.0

    def __post_init__(self) -> None:
        for name, known in (("shapes", SHAPES), ("colours", COLOURS), ("textures", TEXTURES)):
            _check_names(name, getattr(self, name), tuple(known))
        _check_names("backgrounds", self.backgrounds, BACKGROUNDS)
        if not 1 <= self.min_objects <= self.max_objects:
            raise ValueError(
                f"objects per scene must satisfy 1 <= min_objects <= max_objects, "
                f"but min_objects={self.min_objects} and max_objects={self.max_objects}"
            )
        widest = self.max_size / 2 * max(SHAPES[shape].reach for shape in self.shapes)
        if not 4 <= self.min_size <= self.max_size or 2 * widest > min(self.height, self.width):
            raise ValueError(
                f"object sizes must satisfy 4 <= min_size <= max_size and fit into {self.height}x{self.width} pixels, "
                f"but min_size={self.min_size} and max_size={self.max_size}, {2 * widest:.0f} pixels when rotated"
            )
        if not 0 < self.min_visible <= 1:
            raise ValueError(f"min_visible must lie in (0, 1], but is {self.min_visible}")
        if self.max_distractors < 0 or self.noise < 0 or self.max_rotation < 0:
            raise ValueError(
                f"max_distractors, noise and max_rotation must not be negative, but are "
                f"{self.max_distractors}, {self.noise} and {self.max_rotation}"
            )


def _check_names(field: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) != len(names):
        raise ValueError(f"{field} must be one or more different names of {', '.join(known)}, but are {names!r}")


class Footprint(NamedTuple):
    """Where an object lies on the canvas: `distance` (h, w) in pixels (negative inside) of the rows and columns given.

    `along` and `down` (h, w) are coordinates on the object's own unrotated axes, in halves of its size.
    """

    rows: slice
    columns: slice
    distance: np.ndarray
    along: np.ndarray
    down: np.ndarray


# Placing, drawing and relating one scene's objects ask for the same few footprints.
@lru_cache(maxsize=32)
def footprint(item: SceneObject, height: int, width: int) -> Footprint:
    """Signed distance of `item` at each pixel centre of its surroundings on a canvas of `height` x `width` pixels.

    The arrays are shared between callers and therefore read-only.
    """
    reach = item.reach + 1.0
    left, right = max(math.floor(item.x - reach), 0), min(math.ceil(item.x + reach), width)
    top, bottom = max(math.floor(item.y - reach), 0), min(math.ceil(item.y + reach), height)
    x = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - item.x)
    y = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - item.y)
    angle = math.radians(item.rotation)
    cosine, sine = math.cos(angle), math.sin(angle)
    half = item.size / 2
    along = (x * (cosine / half))[None] + (y * (sine / half))[:, None]
    down = (x * (-sine / half))[None] + (y * (cosine / half))[:, None]
    distance = SHAPES[item.shape].distance(along, down)
    distance *= half
    for array in (along, down, distance):
        array.flags.writeable = False
    return Footprint(slice(top, bottom), slice(left, right), distance, along, down)


def sample_scene(recipe: SceneRecipe, seed: int, split: str, index: int) -> Scene:
    """Scene number `index` of `split` ("train", "val" or "test"): a function of its arguments alone."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, but is {split!r}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, but are {seed} and {index}")
    rng = np.random.default_rng(np.random.SeedSequence([seed, SPLITS[split], index]))
    background = _sample_background(recipe, rng)
    distractors = tuple(_sample_distractor(recipe, rng) for _ in range(rng.integers(recipe.max_distractors + 1)))
    objects = _sample_objects(recipe, rng, int(rng.integers(recipe.min_objects, recipe.max_objects + 1)))
    return Scene(
        height=recipe.height,
        width=recipe.width,
        background=background,
        objects=tuple(objects),
        distractors=distractors,
        noise=recipe.noise,
        noise_seed=int(rng.integers(2**63)),
    )


def _pick(names: tuple[str, ...], uniform: float) -> str:
    return names[int(uniform * len(names))]


def _sample_objects(recipe: SceneRecipe, rng: np.random.Generator, count: int) -> list[SceneObject]:
    objects: list[SceneObject] = []
    for _ in range(_TRIES_PER_OBJECT * count):
        candidate = _sample_object(recipe, rng)
        if _all_stay_visible([*objects, candidate], recipe):
            objects.append(candidate)
            if len(objects) == count:
                return objects
    if len(objects) >= recipe.min_objects:
        return objects
    raise ValueError(
        f"no place for min_objects={recipe.min_objects} objects of {recipe.min_size} to {recipe.max_size} pixels on "
        f"{recipe.height}x{recipe.width} with min_visible={recipe.min_visible}: use fewer, smaller or more hidden ones"
    )


def _sample_object(recipe: SceneRecipe, rng: np.random.Generator) -> SceneObject:
    # One draw for all numbers: a call of the generator costs more than the numbers themselves.
    shape, colour, texture, size, rotation, x, y = rng.random(7).tolist()
    name = _pick(recipe.shapes, shape)
    side = recipe.min_size * (recipe.max_size / recipe.min_size) ** size
    reach = SHAPES[name].reach * side / 2
    return SceneObject(
        shape=name,
        colour=_pick(recipe.colours, colour),
        texture=_pick(recipe.textures, texture),
        x=reach + x * (recipe.width - 2 * reach),
        y=reach + y * (recipe.height - 2 * reach),
        size=side,
        rotation=(2 * rotation - 1) * recipe.max_rotation,
    )


def _all_stay_visible(objects: list[SceneObject], recipe: SceneRecipe) -> bool:
    """Whether the last of `objects`, put on top, leaves enough of each object that it touches."""
    newest = objects[-1]
    for below, item in enumerate(objects[:-1]):
        if math.hypot(item.x - newest.x, item.y - newest.y) >= item.reach + newest.reach:
            continue
        if visible_fraction(objects, below, recipe.height, recipe.width) < recipe.min_visible:
            return False
    return True


def visible_fraction(
    objects: list[SceneObject] | tuple[SceneObject, ...], which: int, height: int, width: int
) -> float:
    """Share of the pixels of object `which` that no later object hides."""
    item = objects[which]
    place = footprint(item, height, width)
    whole = place.distance <= 0
    canvas = np.zeros((height, width), dtype=bool)
    canvas[place.rows, place.columns] = whole
    for above in objects[which + 1 :]:
        if math.hypot(item.x - above.x, item.y - above.y) < item.reach + above.reach:
            hiding = footprint(above, height, width)
            canvas[hiding.rows, hiding.columns] &= hiding.distance > 0
    return float(np.count_nonzero(canvas) / np.count_nonzero(whole))


def _sample_background(recipe: SceneRecipe, rng: np.random.Generator) -> Background:
    kind, grey, contrast, angle, period, *tints = rng.random(8).tolist()
    # Muted and nearly grey, light or dark: every palette colour stands out, and none is tied to a background.
    level = 30 + 50 * grey * 2 if grey < 0.5 else 150 + 80 * (grey - 0.5) * 2
    first = tuple(round(level + 16 * (tint - 0.5)) for tint in tints)
    shift = (10 + 16 * contrast) * (1 if level < 128 else -1)
    second = tuple(round(channel + shift) for channel in first)
    return Background(_pick(recipe.backgrounds, kind), first, second, angle * 360, 10 + 22 * period)


def _sample_distractor(recipe: SceneRecipe, rng: np.random.Generator) -> Distractor:
    kind, colour, opacity, width, x, y, *turns = rng.random(12).tolist()
    name = _pick(("line", "glyph", "blob"), kind)
    scale = min(recipe.height, recipe.width) / 128
    length, parts, thickness, softness = {
        "line": (60 * scale, 1, 1.0 + 1.5 * width, 1.0),
        "glyph": (11 * scale, 2 + int(turns[0] * 2), 1.6 + 1.6 * width, 1.0),
        "blob": (9 * scale, 1, 8 + 8 * width, 8.0),
    }[name]
    points = [(x * recipe.width, y * recipe.height)]
    heading = 2 * math.pi * turns[1]
    for part, turn in enumerate(turns[2 : 2 + parts]):
        step = length * (0.6 + 0.6 * turn)
        points.append((points[-1][0] + step * math.cos(heading), points[-1][1] + step * math.sin(heading)))
        # Sharp bends, by turns left and right, make letter-like marks (L, V, Z, N) that close to none of the shapes.
        heading += math.radians(70 + 50 * turn) * (-1) ** part
    rgb = COLOURS[_pick(recipe.colours, colour)]
    return Distractor(name, rgb, 0.45 + 0.4 * opacity, tuple(points), thickness, softness)
