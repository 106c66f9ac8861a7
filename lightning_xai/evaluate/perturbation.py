"""Is what an explanation calls relevant needed? The prediction while pixels are removed in its order.

Protocol of Chefer et al. (CVPR 2021, arXiv 2012.09838, section 4): pixels are set to 0 before normalisation, the most
relevant first (positive test: good explanations give a fast fall) or the least relevant first (negative test: a slow
one). Letters: B images, S steps.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_xai.evaluate.image_scores import ImageScores

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Test = Literal["positive", "negative"]


def remove_pixels(images: Tensor, relevance: Tensor, count: int, test: Test) -> Tensor:
    """The images (B, C, h, w) with `count` pixels set to 0: the most relevant ones ("positive") or the least.

    relevance: (B, h, w). Pixels of equal relevance are removed in any order.
    """
    if test not in ("positive", "negative"):
        raise ValueError(f"test={test!r} is unknown: it must be 'positive' or 'negative'")
    if relevance.shape != images[:, 0].shape:
        expected = tuple(images[:, 0].shape)
        raise ValueError(f"relevance {tuple(relevance.shape)} must have one number a pixel of the images, {expected}")
    if not 0 <= count <= relevance[0].numel():
        raise ValueError(f"cannot remove {count} of {relevance[0].numel()} pixels")
    order = relevance.flatten(1) if test == "positive" else -relevance.flatten(1)
    chosen = order.topk(count, dim=-1).indices[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).scatter(-1, chosen, 0).view_as(images)


def prediction_scores(logits: Tensor, targets: Tensor, intact: Tensor) -> dict[str, Tensor]:
    """How the prediction of a perturbed image stands to that of the intact one, (B,) each.

    hits: 1 where the target is still the likeliest class. dissimilarities: log(p_target / p_second), p_second being the
    second largest probability. logit_diff, prob_diff: largest logit and probability, minus those of the intact image.
    logits, intact: (B, classes). targets: (B,).
    """
    log_p, intact_p = logits.log_softmax(-1), intact.softmax(-1)
    return {
        "hits": (logits.argmax(-1) == targets).float(),
        "dissimilarities": log_p.gather(-1, targets[:, None])[:, 0] - log_p.topk(2, dim=-1).values[:, 1],
        "logit_diff": logits.amax(-1) - intact.amax(-1),
        "prob_diff": log_p.exp().amax(-1) - intact_p.amax(-1),
    }


@torch.no_grad()
def perturbation_scores(
    classify: Callable[[Tensor], Tensor],
    images: Tensor,
    relevance: Tensor,
    targets: Tensor,
    test: Test,
    counts: Sequence[int],
) -> dict[str, Tensor]:
    """`prediction_scores` of the intact images and after each removal, (B, 1 + S) each.

    classify: normalises images (B, 3, h, w) in [0, 1] and gives logits. relevance: (B, h, w). targets: (B,), the
    predicted or the true classes. counts: how many pixels are removed at each of the S steps.
    """
    intact = classify(images)
    steps = [prediction_scores(intact, targets, intact)]
    for count in counts:
        logits = classify(remove_pixels(images, relevance, count, test))
        steps.append(prediction_scores(logits, targets, intact))
    return {name: torch.stack([step[name] for step in steps], 1) for name in steps[0]}


def area_under_curve(values: Tensor, fractions: Sequence[float]) -> float:
    """Area in per cent under `values` (1 + S,) over the removed share x = 0, fractions[0] ..., by trapezoids.

    It is not divided by the width of the x axis, as in the published numbers: x up to 0.9 gives at most 90.
    """
    x = torch.tensor([0.0, *fractions], dtype=torch.float64)
    if len(x) != len(values):
        needed = len(values) - 1
        raise ValueError(f"{len(values)} values need {needed} fractions after 0, but {len(fractions)} were given")
    return 100 * float(torch.trapezoid(values.double(), x))


class PerturbationTest:
    """The curves of one explanation method over all images that were given to `update`.

    test: "positive" or "negative". fractions: the shares of pixels that are removed. Each image counts once, however
    many processes saw it.
    """

    def __init__(self, test: Test, fractions: Sequence[float] = FRACTIONS):
        if test not in ("positive", "negative"):
            raise ValueError(f"test={test!r} is unknown: it must be 'positive' or 'negative'")
        if not fractions or list(fractions) != sorted(set(fractions)) or not 0 < fractions[0] <= fractions[-1] <= 1:
            raise ValueError(f"fractions={list(fractions)} must be rising numbers above 0 and up to 1")
        self.test: Test = test
        self.fractions = tuple(fractions)
        self.scores = ImageScores()

    def update(
        self,
        image_ids: Sequence[int],
        images: Tensor,
        relevance: Tensor,
        targets: Tensor,
        classify: Callable[[Tensor], Tensor],
    ) -> None:
        """Add images (B, 3, h, w) in [0, 1] with relevance (B, h, w) and target classes (B,).

        classify: normalises such images and gives logits (B, classes). Raises ValueError for
        relevance that is not finite.
        """
        if not relevance.isfinite().all():
            raise ValueError("the relevance holds NaN or infinite numbers")
        counts = [int(relevance[0].numel() * fraction) for fraction in self.fractions]
        self.scores.add(image_ids, perturbation_scores(classify, images, relevance, targets, self.test, counts))

    def compute(self) -> dict[str, object]:
        """`fractions` from 0 on, the mean of each score at each of them, and `auc` of the hits; collective."""
        gathered = self.scores.gathered()
        curves = {name: values.double().mean(0) for name, values in gathered.items()}
        numbers: dict[str, object] = {name: curve.tolist() for name, curve in curves.items()}
        numbers["images"] = len(gathered["hits"])
        return numbers | {"fractions": [0.0, *self.fractions], "auc": area_under_curve(curves["hits"], self.fractions)}
