"""Attention rollout: attention followed through all layers, residual connections included."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_xai.explain.method import Method
from lightning_xai.explain.recording import Recording
from lightning_xai.explain.row_propagation import StartLayer, rows_of_products, sites_from
from lightning_xai.explain.targets import Targets


@dataclass(frozen=True)
class Rollout(Method):
    """The read row of the product over layers of rownorm(mean_h A + I), later layers on the left: (T, N).

    A stream b that the read stream s attends to has Roll_s^T (mean_h A_last) Roll_b.
    start_layer: the first layer that takes part, for all parts or by part. normalise: divide rows by their sums.
    Source: Abnar and Zuidema, ACL 2020; the encoder-decoder form from Chefer et al., ICCV 2021.
    """

    needs_gradients: ClassVar[bool] = False
    start_layer: StartLayer = 0
    normalise: bool = True

    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        sites = sites_from(recording.sites, self.start_layer)
        maps = {site.module: recording[site.module].averaged(samples=targets.samples) for site in sites}
        return rows_of_products(recording, maps, targets, normalise=self.normalise)
