"""Does relevance lie on the object that it explains? Its share inside the true mask, and where its peak is."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_xai.evaluate.image_scores import ImageScores
from lightning_xai.evaluate.measure import Batch, Classify, Measure, Numbers, image_ids
from lightning_xai.evaluate.object_masks import object_masks
from lightning_xai.evaluate.segmentation import UNKNOWN
from lightning_xai.explain.explainable import Explained
from lightning_xai.explain.explanation import Explanation

NOISE = 1e-6  # differences below this share of the largest number are the rounding of float32


def energy_scores(relevance: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """How much of each map is on the object, (T,) each, over the pixels that somebody knows.

    energy: sum of e on the object / sum of e, where e = max(r - max(min r, 0), 0): positive relevance without the part
    that all pixels have alike, such as each patch's own share in the mean that a pooled network reads. pointing: 1
    where the largest e is on the object. Both are 0 where e is 0 everywhere. area: the object's share of the pixels,
    which is the energy to expect of a map that knows nothing. relevance, labels: (T, h, w), labels 1 on the object, 0
    beside it, -1 unknown.
    Source: Wang et al. 2020 (Score-CAM, energy-based pointing game); Zhang et al. 2016 (pointing game).
    """
    known, inside = (labels != UNKNOWN).flatten(1), (labels == 1).flatten(1)
    maps = relevance.flatten(1).double()
    floor = maps.masked_fill(~known, torch.inf).amin(1, keepdim=True).clamp(min=0)
    energy = (maps - floor).clamp(min=0).masked_fill(~known, 0)
    largest, peak = energy.max(1)
    says = largest > NOISE * maps.abs().amax(1)  # or it is constant but for rounding
    share = (energy * inside).sum(1) / energy.sum(1).where(says, torch.ones_like(largest))
    return {
        "energy": share.where(says, torch.zeros_like(share)),
        "pointing": (says & inside.gather(1, peak[:, None])[:, 0]).double(),
        "area": inside.sum(1).double() / known.sum(1).clamp(min=1),
    }


class RelevanceEnergy(Measure):
    """Relevance on true objects: of the annotated objects that a detector found, or of a classifier's image.

    choice: by default "truth": a detector's best query for each annotated object, or an image's true class. limit: at
    most so many targets an image. Numbers are means over targets (objects): `energy`, `pointing` and `area`, see
    `energy_scores`; a method says something about objects where its energy is above the area and above the controls'.
    Targets of which no pixel is known are left out.
    """

    def __init__(self, choice: str = "truth", limit: int | None = None):
        self.choice, self.limit = choice, limit
        self.scores: dict[str, ImageScores] = {}

    def begin(self, methods: Sequence[str]) -> None:
        self.scores = {method: ImageScores() for method in methods}

    def update(
        self, method: str, explanation: Explanation, explained: Explained, batch: Batch, classify: Classify = None
    ) -> None:
        labels = object_masks(explained, batch)
        relevance = explanation.on_pixels(tuple(labels.shape[1:])).detach().float().cpu()
        if not relevance.isfinite().all():
            raise ValueError(f"the relevance by {method} holds NaN or infinite numbers")
        known = (labels != UNKNOWN).flatten(1).any(1)
        samples, owner = explained.targets.samples.cpu()[known].unique(return_inverse=True)
        scores = energy_scores(relevance[known], labels[known])
        scores["targets"] = torch.ones(len(owner), dtype=torch.float64)
        sums = {
            name: torch.zeros(len(samples), dtype=torch.float64).index_add(0, owner, v) for name, v in scores.items()
        }
        ids = image_ids(batch)
        self.scores[method].add([ids[sample] for sample in samples.tolist()], sums)

    def compute(self) -> dict[str, Numbers]:
        return {method: self._means(method, scores) for method, scores in self.scores.items()}

    def _means(self, method: str, scores: ImageScores) -> Numbers:
        sums = {name: float(values.sum()) for name, values in scores.gathered().items()}
        count = round(sums.pop("targets"))
        return {name: value / count for name, value in sums.items()} | {"targets": count}
