"""Generic relevance with LRP's relevance in the place of the attention weights."""

from dataclasses import dataclass

from torch import Tensor

from lightning_xai.explain.generic_relevance import GenericRelevance
from lightning_xai.explain.method import Needs
from lightning_xai.explain.recording import Recording
from lightning_xai.explain.row_propagation import sites_from
from lightning_xai.explain.site_relevance import (
    positive_gradient_relevance,
    reduced_gradients_and_relevances,
)
from lightning_xai.explain.targets import Targets


@dataclass(frozen=True)
class GenericRelevanceLRP(GenericRelevance):
    """The rules of `GenericRelevance` with Abar = mean_h relu(G * C), C the relevance at the attention weights: (T, N).

    rules: the table that the relevance follows. Other options as there.
    Source: Chefer et al., ICCV 2021, the variant with LRP of the authors' code.
    """

    rules: str = "chefer_conserving"

    @property
    def needs(self) -> Needs:
        return Needs(rules=self.rules)

    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        modules = [site.module for site in sites_from(recording.sites, self.start_layer)]
        reduced = reduced_gradients_and_relevances(recording, targets, positive_gradient_relevance, modules)
        return self.propagate(recording, reduced, targets)
