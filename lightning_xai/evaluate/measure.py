"""What every measure of the truth of explanations offers, so that one run measures all methods alike."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_xai.explain.explainable import Explainable, Explained
from lightning_xai.explain.explanation import Explanation

Numbers = dict[str, float]
Batch = Mapping[str, Any]
Classify = Callable[[Tensor], Tensor] | None


class Measure(ABC):
    """One way of asking whether explanations are true: collects over batches and processes, then answers by method.

    choice, limit: which targets the task is asked to explain, see `Explainable.explained`.
    """

    choice: str = "predicted"
    limit: int | None = None

    @abstractmethod
    def begin(self, methods: Sequence[str]) -> None:
        """Forget everything; these methods will be measured."""

    def see(self, task: Explainable, outputs: Any, batch: Batch) -> None:  # noqa: B027
        """What the network said of a batch, once before its explanations, also where nothing of it is explained."""

    @abstractmethod
    def update(
        self, method: str, explanation: Explanation, explained: Explained, batch: Batch, classify: Classify
    ) -> None:
        """Add the explanation of a batch's targets by one method.

        classify: normalises images (B, 3, h, w) in [0, 1] and gives logits (B, classes); None where the task is no
        classifier. Nothing here may wait for other processes: they may have fewer batches.
        """

    @abstractmethod
    def compute(self) -> dict[str, Numbers]:
        """The numbers of each method, in the order of `begin`; a collective call, the same on each process."""


def image_ids(batch: Batch) -> list[int]:
    """The ids (B) of a batch's images: `image_id` of detection targets, `index` of a classification batch."""
    if "targets" in batch:
        return [int(target["image_id"]) for target in batch["targets"]]
    return [int(index) for index in batch["index"]]
