"""Generic relevance: attention times its positive gradient, followed through self- and cross-attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_xai.explain.co_attention import co_attention_relevance, read_each_other
from lightning_xai.explain.influence import influencing_tokens
from lightning_xai.explain.linear_maps import DenseMap, LinearMap
from lightning_xai.explain.method import Method
from lightning_xai.explain.recording import AttentionRecord, Record, Recording
from lightning_xai.explain.row_propagation import StartLayer, read_rows, rows_of_products, sites_from, sources_of
from lightning_xai.explain.streams import Site
from lightning_xai.explain.targets import Targets


def positive_gradient_attention(record: Record, gradient: Tensor) -> Tensor:
    """Rule 5, mean over heads of relu(G * A): (B, Q, K); of deformable attention relu(G * W): (B, Q, H, L, P)."""
    if not isinstance(record, AttentionRecord):
        return (gradient * record.weights).relu()
    heads = record.probabilities.shape[1]
    # Head by head, so that no further tensor of all heads is made.
    total = (gradient[:, 0] * record.probabilities[:, 0]).relu()
    for head in range(1, heads):
        total = total + (gradient[:, head] * record.probabilities[:, head]).relu()
    return total / heads


@dataclass(frozen=True)
class GenericRelevance(Method):
    """Relevance R of every stream for the token that is read out, layer by layer: (T, N).

    With Abar = mean_h relu(G * A), G the gradient of the target's score, starting from R_ss = I:
    self-attention of s: R_ss += Abar R_ss and R_sb += Abar R_sb (equations 6, 7);
    s reads b: R_sb += N(R_ss)^T Abar N(R_bb) (equation 10), N(R) = I + the rows of R - I divided by their sums (8, 9).
    if b reads s as well, also R_ss += Abar R_bs (equation 11).
    Without the last, only the read row is propagated, which needs no product of matrices, and deformable attention
    takes part as it is.

    start_layer: the first layer that takes part, negative from the last, for all parts or by part. normalise=False: N
    is left out. self_in_cross=False: equation 10 adds Abar alone. aggregate=False: every += is =.
    zero_row: what N makes of a row of R - I whose sum is 0. "wipe": 0 / 0, which makes the whole product of equation 10
    not a number, so that it counts as 0, as in the authors' code. "identity": a row of I. By default "wipe" if all
    sites are dense, "identity" with deformable ones, where untouched tokens are the rule. Rows of tokens on which the
    read one cannot depend, padding and what follows it in causal attention, are not looked at. Differences from the
    authors' code: R - I is kept, not R, which is more exact in float32; samples of a batch are not averaged.
    Source: Chefer et al., ICCV 2021, arXiv 2103.15679.
    """

    start_layer: StartLayer = 0
    normalise: bool = True
    self_in_cross: bool = True
    aggregate: bool = True
    zero_row: Literal["wipe", "identity"] | None = None

    def __post_init__(self):
        if self.zero_row not in (None, "wipe", "identity"):
            raise ValueError(f"zero_row is {self.zero_row!r}, expected 'wipe' or 'identity'")

    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        modules = [site.module for site in sites_from(recording.sites, self.start_layer)]
        weights = recording.reduced_gradients(targets, positive_gradient_attention, modules)
        return self.propagate(recording, weights, targets)

    def propagate(self, recording: Recording, weights: Mapping[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The rules with given Abar by module, of the sites that take part: (T, Q, K), deformable (T, Q, H, L, P)."""
        maps = {name: recording[name].averaged(given, targets.samples) for name, given in weights.items()}
        sites = [site for site in recording.sites if site.module in maps]
        mutual = read_each_other(sites)
        if not self.aggregate:
            if mutual:
                raise ValueError("aggregate=False is for networks without streams that read each other")
            return rows_of_products(recording, maps, targets, identity=0.0)
        wipe = self.zero_row == "wipe" or (
            self.zero_row is None and all(site.kind == "dense" for site in recording.sites)
        )
        result: dict[str, Tensor] = {}
        if mutual:
            flags = (self.normalise, self.self_in_cross, wipe)
            matrices = co_attention_relevance(recording, maps, targets, *flags)
            for stream, tokens in targets.rows.items():
                for source in sources_of(sites, stream):
                    row = DenseMap(matrices[stream, source]).rows(tokens)
                    result[source] = row + result.get(source, 0)
            return result
        for stream, tokens in targets.rows.items():
            for source, row in self._read(recording, sites, maps, stream, tokens, targets.samples, wipe).items():
                result[source] = row[:, 0] + result.get(source, 0)
        return result

    def _read(
        self,
        recording: Recording,
        sites: Sequence[Site],
        maps: Mapping[str, LinearMap],
        stream: str,
        tokens: Tensor,
        samples: Tensor,
        wipe: bool,
    ) -> dict[str, Tensor]:
        """The rows (T, 1, N) of R_sb of the read stream s, by source b, from the last layer to the first.

        The row wanted is that of carried[x] (R_xb - I) summed over the streams x, plus what is found already.
        """
        written = [site for site in sites if site.writes == stream]
        if not written:
            raise ValueError(
                f"targets read the stream {stream!r}, which no attention writes; the written ones are "
                f"{', '.join(dict.fromkeys(site.writes for site in sites))}"
            )
        unit = read_rows(tokens, maps[written[0].module], recording[written[0].module].queries)
        carried, found = {stream: unit}, {stream: unit}
        present = influencing_tokens(recording, {stream: tokens}, samples)[stream]
        for index in reversed(range(len(sites))):
            site = sites[index]
            layer = maps[site.module]
            if site.writes == site.reads and site.writes in carried:
                step = layer.mix_back(carried[site.writes])
                found[site.writes] = found[site.writes] + step
                carried[site.writes] = carried[site.writes] + step
            elif site.writes == stream:
                earlier = {
                    name: [maps[s.module] for s in sites[:index] if s.writes == s.reads == name]
                    for name in (site.writes, site.reads)
                }
                read = recording[site.module].read_by(present, samples)
                reached, onward = self._cross(layer, carried[stream], *earlier.values(), read, present, wipe)
                found[site.reads] = found.get(site.reads, 0) + reached
                carried[site.reads] = carried.get(site.reads, 0) + onward
        return {source: found[source] for source in sources_of(sites, stream)}

    def _cross(
        self,
        layer: LinearMap,
        row: Tensor,
        written: Sequence[LinearMap],
        source: Sequence[LinearMap],
        read: Tensor,
        present: Tensor,
        wipe: bool,
    ) -> tuple[Tensor, Tensor]:
        """z = u N(R_ss)^T Abar and what of z goes on into R_bb - I, for the row u (T, 1, Q): two rows (T, 1, K).

        written, source: the self-attentions of s and b so far. read: (T, K) and present: (T, Q), False on what has no
        influence.
        """
        if not self.self_in_cross:
            reached = layer.mix_back(row)
            return reached, torch.zeros_like(reached)
        column = row.transpose(1, 2)
        wiped = torch.zeros(len(row), 1, 1, dtype=torch.bool, device=row.device)
        if written:
            mixed, sums = _columns_of_sum(written, column)
            if self.normalise:
                mixed = mixed / sums.masked_fill(sums == 0, 1)
                wiped = wiped | ((sums == 0) & present[..., None]).any(1, keepdim=True)
            column = column + mixed
        reached = layer.mix_back(column.transpose(1, 2))
        onward = reached
        if source and self.normalise:
            sums = _columns_of_sum(source, torch.ones_like(reached).transpose(1, 2))[1]
            wiped = wiped | ((sums == 0) & read[..., None]).any(1, keepdim=True)
            onward = reached / sums.masked_fill(sums == 0, 1).transpose(1, 2)
        if wipe:
            reached, onward = reached.masked_fill(wiped, 0), onward.masked_fill(wiped, 0)
        return reached, onward


def _columns_of_sum(maps: Sequence[LinearMap], column: Tensor) -> tuple[Tensor, Tensor]:
    """(R - I) c of a column c (T, N, 1), and the row sums (T, N, 1) of R - I, where R = (I + A_n) ... (I + A_1)."""
    columns = torch.cat([column, torch.ones_like(column)], -1)
    state = torch.zeros_like(columns)
    for layer in maps:
        state = state + layer.mix(columns + state)
    return state[..., :1], state[..., 1:]
