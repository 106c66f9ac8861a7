"""Drawing a scene: an anti-aliased RGB picture with mild noise, and the exact masks and boxes of its objects."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lightning_xai.data.scene import COLOURS, Background, Distractor, Footprint, Scene, SceneObject, footprint
from lightning_xai.data.shapes import distance_to_strokes

_OUTLINE = 1.5  # pixels, so that overlapping objects of one colour stay apart


@dataclass(frozen=True)
class Rendering:
    """A drawn scene.

    `pixels` (3, h, w) uint8 RGB; `owner` (h, w) int16: the number of the nearest object that covers the pixel's centre
    (at least half of the pixel, up to corners), -1 for the background; `amodal` (N, h, w) bool: each object's pixels
    including the hidden ones.
    """

    pixels: np.ndarray
    owner: np.ndarray
    amodal: np.ndarray

    @property
    def picture(self) -> np.ndarray:
        """The same RGB picture as (h, w, 3), the layout that files and drawings use."""
        return np.moveaxis(self.pixels, 0, -1)

    @property
    def visible(self) -> np.ndarray:
        """Masks (N, h, w) bool of what is seen of each object; no two of them overlap."""
        return self.owner == np.arange(len(self.amodal), dtype=self.owner.dtype)[:, None, None]

    @property
    def boxes(self) -> np.ndarray:
        """Boxes (N, 4) float32, xyxy pixels: the extents of the visible masks, all 0 for an object nobody sees."""
        return mask_boxes(self.visible)

    @property
    def areas(self) -> np.ndarray:
        """Visible pixels (N,) float32 of each object."""
        return np.bincount(self.owner.ravel() + 1, minlength=len(self.amodal) + 1)[1:].astype(np.float32)

    @property
    def visible_fractions(self) -> np.ndarray:
        """Visible share (N,) float32 of each object's pixels."""
        return self.areas / np.maximum(self.amodal.sum((1, 2)), 1).astype(np.float32)


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """Tight boxes (N, 4) float32, xyxy pixel edges, of `masks` (N, h, w) bool; an empty mask has the box 0, 0, 0, 0."""
    columns, rows = masks.any(1), masks.any(2)
    left, top = columns.argmax(1), rows.argmax(1)
    right = masks.shape[2] - columns[:, ::-1].argmax(1)
    bottom = masks.shape[1] - rows[:, ::-1].argmax(1)
    boxes = np.stack([left, top, right, bottom], 1).astype(np.float32)
    boxes[~columns.any(1)] = 0
    return boxes


def render(scene: Scene) -> Rendering:
    """Draw `scene`: background, then distractors, then objects from far to near, then noise."""
    canvas = _draw_background(scene.background, scene.height, scene.width)
    for distractor in scene.distractors:
        _draw_distractor(canvas, distractor)
    owner = np.full((scene.height, scene.width), -1, dtype=np.int16)
    amodal = np.zeros((len(scene.objects), scene.height, scene.width), dtype=bool)
    for number, item in enumerate(scene.objects):
        place = footprint(item, scene.height, scene.width)
        inside = place.distance <= 0
        amodal[number, place.rows, place.columns] = inside
        owner[place.rows, place.columns][inside] = number
        _draw_object(canvas, item, place)
    if scene.noise:
        _add_noise(canvas, scene.noise, scene.noise_seed)
    canvas += 0.5
    np.clip(canvas, 0, 255, out=canvas)
    return Rendering(canvas.astype(np.uint8), owner, amodal)


def _rgb(colour: tuple[float, ...]) -> np.ndarray:
    return np.array(colour, dtype=np.float32)[:, None, None]


def _draw_background(background: Background, height: int, width: int) -> np.ndarray:
    """Canvas (3, h, w) float32."""
    first, second = _rgb(background.first), _rgb(background.second)
    if background.kind == "plain":
        return np.broadcast_to(first, (3, height, width)).copy()
    angle = math.radians(background.angle)
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) * math.cos(angle)
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) * math.sin(angle)
    if background.kind == "gradient":
        # The whole way from one corner to the other, whatever the angle.
        span = width * abs(math.cos(angle)) + height * abs(math.sin(angle))
        amount = (x / span + 0.5)[None] + (y / span)[:, None]
    else:
        turn = 2 * math.pi / background.period
        if background.kind == "stripes":
            # sin(x + y) from its parts needs h + w sines instead of h * w.
            wave = np.outer(np.cos(y * turn), np.sin(x * turn))
            wave += np.outer(np.sin(y * turn), np.cos(x * turn))
        elif background.kind == "checks":
            columns = np.sin((np.arange(width, dtype=np.float32) + 0.5) * turn)
            rows = np.sin((np.arange(height, dtype=np.float32) + 0.5) * turn + angle)
            wave = np.outer(rows, columns) * 3
        else:
            raise ValueError(f"a background is plain, gradient, stripes or checks, but not {background.kind!r}")
        amount = np.clip(wave * (background.period / 6) + 0.5, 0, 1)
    canvas = np.multiply(second - first, amount, dtype=np.float32)
    canvas += first
    return canvas


def _draw_distractor(canvas: np.ndarray, distractor: Distractor) -> None:
    radius = distractor.width / 2
    margin = radius + distractor.softness
    across, down = zip(*distractor.points, strict=True)
    left, right = max(math.floor(min(across) - margin), 0), min(math.ceil(max(across) + margin), canvas.shape[2])
    top, bottom = max(math.floor(min(down) - margin), 0), min(math.ceil(max(down) + margin), canvas.shape[1])
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32) + np.float32(0.5)
    y = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5)
    distance = distance_to_strokes(x, y, distractor.points) - radius
    coverage = np.clip(0.5 - distance / distractor.softness, 0, 1) * distractor.opacity
    region = canvas[:, top:bottom, left:right]
    region += coverage * (_rgb(distractor.colour) - region)


def _draw_object(canvas: np.ndarray, item: SceneObject, place: Footprint) -> None:
    colour = _rgb(COLOURS[item.colour])
    marks = _texture(item, place)
    paint = colour if marks is None else colour + marks * ((255 - colour) * 0.6)
    outline = np.clip(place.distance + (_OUTLINE + 0.5), 0, 1)
    paint = paint + outline * (colour * 0.45 - paint)
    region = canvas[:, place.rows, place.columns]
    region += np.clip(0.5 - place.distance, 0, 1) * (paint - region)


def _texture(item: SceneObject, place: Footprint) -> np.ndarray | None:
    """Share of the light colour (h, w) at each pixel, in the object's own axes; None where there is none of it."""
    if item.texture == "solid":
        return None
    period = 5.0 + item.size / 12
    turn = 2 * math.pi / period * item.size / 2
    if item.texture == "striped":
        wave = np.sin(place.down * turn)
    elif item.texture == "dotted":
        wave = np.sin(place.along * turn) * np.sin(place.down * turn) * 2 - 0.9
    elif item.texture == "checked":
        wave = np.sin(place.along * (turn / 1.4)) * np.sin(place.down * (turn / 1.4)) * 3
    else:
        raise ValueError(f"a texture is solid, striped, dotted or checked, but not {item.texture!r}")
    return np.clip(wave * (period / 6) + 0.5, 0, 1)


def _add_noise(canvas: np.ndarray, deviation: float, seed: int) -> None:
    """Add uniform noise of standard `deviation`: random bytes cost a tenth of normal numbers."""
    words = np.random.Generator(np.random.PCG64(seed)).integers(2**64, size=-(-canvas.size // 8), dtype=np.uint64)
    # Little-endian everywhere, so that one seed gives one picture on every machine.
    noise = words.astype("<u8", copy=False).view(np.int8)[: canvas.size].reshape(canvas.shape)
    scale = np.float32(deviation * math.sqrt(12) / 256)
    for channel, steps in zip(canvas, noise, strict=True):
        channel += steps * scale
