"""The people of the embedded world: they look at explanations of failures and answer the two crowd tasks.

In the first they are shown where the model looked, and say what is seen there and how clearly; in the second they say
what should matter. Both are answered from what is true of a picture, in the layout of `crowd_tasks`.
"""

from typing import Any

import numpy as np

from lightning_xai.data.trap_scene import CUE_WORDS

# What a person would name as typical of each shape.
TRAITS = {
    "circle": "round outline",
    "square": "four right corners",
    "triangle": "three corners",
    "star": "five tips",
    "cross": "four arms",
    "heart": "two lobes",
    "ring": "round hole",
    "crescent": "two horns",
}


def relevance_ratings(relevance: np.ndarray, regions: dict[str, np.ndarray]) -> dict[str, float]:
    """How clearly a map (h, w) shows each region (h, w) bool, from 1 to 5: 1 + 4 d / max d, to a half.

    d is the positive relevance a pixel of the region, beyond what all pixels have alike. A map without any, or a region
    without pixels, is rated 1.
    """
    positive = np.maximum(relevance - max(float(relevance.min()), 0.0), 0)
    density = {name: float(positive[mask].mean()) if mask.any() else 0.0 for name, mask in regions.items()}
    highest = max(density.values(), default=0.0) or 1.0
    return {name: round(2 * (1 + 4 * value / highest)) / 2 for name, value in density.items()}


def attribution_answers(
    image: str, shape: str, cue: str, relevance: np.ndarray, object_mask: np.ndarray, mark: list[float] | None
) -> list[dict[str, Any]]:
    """Tasks on what the explanation of a wrong prediction shows: the object's trait, and the cue.

    cue: "mark" or "background". mark: the mark's box, xyxy in pixels; without one a background cue is all beside the
    object.
    """
    beside = ~object_mask
    if mark is not None:
        x0, y0, x1, y1 = (round(side) for side in mark)
        beside = np.zeros_like(object_mask)
        beside[max(y0, 0) : y1, max(x0, 0) : x1] = True
        beside &= ~object_mask
    elif cue == "mark":
        beside = np.zeros_like(object_mask)
    regions = {TRAITS[shape]: object_mask, CUE_WORDS[cue][0]: beside}
    ratings = relevance_ratings(relevance, regions)
    return [_task(image, number, name, rating) for number, (name, rating) in enumerate(ratings.items())]


def rationale_answers(image: str, shape: str) -> list[dict[str, Any]]:
    """Tasks on what should matter for a picture of `shape`: its trait, and nothing else."""
    return [_task(image, 0, TRAITS[shape], 5.0)]


def _task(image: str, number: int, description: str, rating: float) -> dict[str, Any]:
    answer = {
        "Content Type Identification": "object",
        "Content Description": description,
        "Relevance Rating": f"{rating:g}",
    }
    return {
        "task_id": f"{image}-{number}",
        "metadata": {"filename": f"p1_{image}__{number}.jpg"},
        "response": {"annotations": answer},
    }
