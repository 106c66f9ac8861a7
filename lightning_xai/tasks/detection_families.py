"""The two families of set-prediction detectors: how they score classes, what they are trained on, what they report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lightning_xai.nets import deformable_detr_checkpoints, detr_checkpoints
from lightning_xai.tasks.detection_losses import SetCriterion
from lightning_xai.tasks.detection_postprocess import top_detections
from lightning_xai.tasks.detr_losses import SoftmaxMatcher, SoftmaxSetCriterion
from lightning_xai.tasks.detr_postprocess import query_detections
from lightning_xai.tasks.matching import HungarianMatcher


@dataclass(frozen=True)
class DetectorFamily:
    """What sets a family apart.

    scores: logits (B, Q, ...) to the probabilities (B, Q, K) of the K classes. detections: logits, boxes and sizes of
    the images to the detections that an evaluation is given, see `top_detections`. load: a checkpoint into a network,
    with or without its class heads. matcher, criterion: what it is trained by; own_option: the criterion's argument
    that the other family lacks. published: learning rate and batch size of its recipe, where batches scale it.
    """

    scores: Callable[[Tensor], Tensor]
    detections: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
    load: Callable[[nn.Module, str | Path, bool], None]
    matcher: Callable[..., HungarianMatcher]
    criterion: Callable[..., SetCriterion]
    own_option: str
    published: tuple[float, int] | None = None

    def make_criterion(
        self, costs: Mapping[str, float | None], losses: Mapping[str, float | None], options: Mapping[str, float | None]
    ) -> SetCriterion:
        """The losses with these costs, weights and options; None is what the family's recipe has."""
        for name, value in options.items():
            if value is not None and name != self.own_option:
                raise ValueError(
                    f"{name}={value} belongs to the other family of detectors; this network's classes are scored so "
                    f"that {self.own_option} is the one to set"
                )
        matcher = self.matcher(**_given(costs))
        return self.criterion(matcher, **_given(losses), **_given(options))


def _given(options: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in options.items() if value is not None}


FAMILIES = {
    # Deformable DETR: every class has its own yes or no
    "sigmoid": DetectorFamily(
        scores=lambda logits: logits.float().sigmoid(),
        detections=top_detections,
        load=deformable_detr_checkpoints.load_checkpoint,
        matcher=HungarianMatcher,
        criterion=SetCriterion,
        own_option="focal_alpha",
        published=(2e-4, 32),
    ),
    # DETR: classes compete with each other and with "no object", the last logit
    "softmax": DetectorFamily(
        scores=lambda logits: logits.float().softmax(-1)[..., :-1],
        detections=query_detections,
        load=detr_checkpoints.load_checkpoint,
        matcher=SoftmaxMatcher,
        criterion=SoftmaxSetCriterion,
        own_option="no_object_weight",
    ),
}


def family_of(net: nn.Module, class_scores: str | None = None) -> DetectorFamily:
    """The family named "sigmoid" or "softmax"; by default the one that the network states as `class_scores`."""
    name = class_scores or getattr(net, "class_scores", "sigmoid")
    if name not in FAMILIES:
        raise ValueError(f"class_scores={name!r} is unknown: it must be {' or '.join(map(repr, FAMILIES))}")
    return FAMILIES[name]
