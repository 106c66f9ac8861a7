"""Gradient rollout: attention rollout of what the gradient of the target keeps of the attention."""

from dataclasses import dataclass

from torch import Tensor

from lightning_xai.explain.generic_relevance import positive_gradient_attention
from lightning_xai.explain.method import Method
from lightning_xai.explain.recording import Recording
from lightning_xai.explain.row_propagation import StartLayer, rows_of_products, sites_from
from lightning_xai.explain.targets import Targets


@dataclass(frozen=True)
class GradientRollout(Method):
    """The read row of the product over layers of rownorm(mean_h relu(G * A) + I), later layers on the left: (T, N).

    G is the gradient of the target's score. start_layer and normalise as for attention rollout.
    Source: Gildenblat, vit-explain, 2020.
    """

    start_layer: StartLayer = 0
    normalise: bool = True

    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        modules = [site.module for site in sites_from(recording.sites, self.start_layer)]
        reduced = recording.reduced_gradients(targets, positive_gradient_attention, modules)
        maps = {name: recording[name].averaged(weights, targets.samples) for name, weights in reduced.items()}
        return rows_of_products(recording, maps, targets, normalise=self.normalise)
