"""Transformer attribution: relevance at the attention weights where the gradient agrees, through all layers."""

from dataclasses import dataclass

from torch import Tensor

from lightning_xai.explain.method import Method, Needs
from lightning_xai.explain.recording import Recording
from lightning_xai.explain.row_propagation import StartLayer, read_rows, row_of_product, sites_from, sources_of
from lightning_xai.explain.site_relevance import (
    positive_gradient_relevance,
    positive_relevance,
    reduced_gradients_and_relevances,
)
from lightning_xai.explain.targets import Targets


@dataclass(frozen=True)
class TransformerAttribution(Method):
    """The read row of the product over layers of (mean_h relu(G * C) + I), later layers on the left: (T, N).

    G is the gradient of the target's score, C its relevance at the attention weights. A stream that the read stream
    attends to has the row of mean_h relu(G * C) of the last of these attentions. rules: "chefer" as for ViT,
    "chefer_conserving" as for DETR and LXMERT, or another table. start_layer: the first layer of the product.
    gradient: False leaves G out (relevance rollout).
    Source: Chefer et al., CVPR 2021, eq. 13-14; last cross-attention alone: Chefer et al., ICCV 2021, baselines.
    """

    rules: str = "chefer"
    start_layer: StartLayer = 0
    gradient: bool = True

    @property
    def needs(self) -> Needs:
        return Needs(rules=self.rules)

    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        sites = sites_from(recording.sites, self.start_layer)
        reduce = positive_gradient_relevance if self.gradient else positive_relevance
        reduced = reduced_gradients_and_relevances(
            recording, targets, reduce, [site.module for site in sites], self.gradient
        )
        maps = {name: recording[name].averaged(weights, targets.samples) for name, weights in reduced.items()}
        result: dict[str, Tensor] = {}
        for stream, tokens in targets.rows.items():
            for source in sources_of(sites, stream):
                chain = [site.module for site in sites if (site.writes, site.reads) == (stream, source)]
                if not chain:
                    continue
                unit = read_rows(tokens, maps[chain[0]], recording[chain[0]].queries)
                if source == stream:
                    row = row_of_product([maps[module] for module in chain], unit, identity=1.0, normalise=False)
                else:
                    row = maps[chain[-1]].mix_back(unit)
                result[source] = row[:, 0] + result.get(source, 0)
        return result
