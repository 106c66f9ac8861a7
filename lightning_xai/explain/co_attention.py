"""Generic relevance where streams read each other: the rules with the matrices of all pairs of streams."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from lightning_xai.explain.influence import influencing_tokens
from lightning_xai.explain.linear_maps import DenseMap, LinearMap
from lightning_xai.explain.recording import Recording
from lightning_xai.explain.streams import Site
from lightning_xai.explain.targets import Targets


def read_each_other(sites: Sequence[Site]) -> bool:
    """Whether two streams read each other, so that relevance goes both ways and rows alone do not carry it."""
    pairs = {(site.writes, site.reads) for site in sites if site.writes != site.reads}
    return any((reads, writes) in pairs for writes, reads in pairs)


def co_attention_relevance(
    recording: Recording,
    maps: Mapping[str, LinearMap],
    targets: Targets,
    normalise: bool,
    self_in_cross: bool,
    wipe: bool,
) -> dict[tuple[str, str], Tensor]:
    """R_ab (T, N_a, N_b) by written stream a and source b, after all sites, with Abar of each site in `maps`.

    Self-attention of a: R_a* += Abar R_a*. a reads b: R_ab += N(R_aa)^T Abar N(R_bb) and R_aa += Abar R_ba; the
    attentions of one layer between several streams are taken from the same state before it. Equations 6 to 11.
    Raises ValueError for deformable attention, whose matrices are too large. Source: Chefer et al., ICCV 2021.
    """
    sites = [site for site in recording.sites if site.module in maps]
    present = influencing_tokens(recording, targets.rows, targets.samples, across=True)
    relevance: dict[tuple[str, str], Tensor] = {}  # with R_aa - I for R_aa, which keeps its digits

    for between, group in groupby(sites, key=lambda site: (site.writes != site.reads, site.part, site.layer)):
        if not between[0]:
            for site in group:
                _self_attention(relevance, site.writes, _matrix(site, maps))
            continue
        added: list[tuple[tuple[str, str], Tensor]] = []
        for site in group:
            a, b, A = site.writes, site.reads, _matrix(site, maps)
            onto = A
            if self_in_cross and a in present:  # what nothing depends on has no gradient
                written, source = relevance.get((a, a)), relevance.get((b, b))
                wiped = torch.zeros(len(A), 1, 1, dtype=torch.bool, device=A.device)
                if written is not None:
                    factor, zero = _normalised(written, normalise)
                    onto = onto + factor.transpose(1, 2) @ onto
                    wiped = wiped | (zero & present[a][..., None]).any(1, keepdim=True)
                if source is not None:
                    factor, zero = _normalised(source, normalise)
                    onto = onto + onto @ factor
                    read = recording[site.module].read_by(present[a], targets.samples)
                    wiped = wiped | (zero & read[..., None]).any(1, keepdim=True)
                onto = onto.masked_fill(wiped, 0) if wipe else onto
            added.append(((a, b), onto))
            if (b, a) in relevance:
                added.append(((a, a), A @ relevance[b, a]))
        for key, value in added:
            relevance[key] = relevance[key] + value if key in relevance else value
    for site in sites:
        A = _matrix(site, maps)
        relevance.setdefault((site.writes, site.writes), A.new_zeros(len(A), A.shape[1], A.shape[1]))
    for a, b in relevance:
        if a == b:
            own = relevance[a, b]
            relevance[a, b] = own + torch.eye(own.shape[1], dtype=own.dtype, device=own.device)
    return relevance


def _self_attention(relevance: dict[tuple[str, str], Tensor], stream: str, A: Tensor) -> None:
    own = relevance.get((stream, stream))
    for key in [key for key in relevance if key[0] == stream and key[1] != stream]:
        relevance[key] = relevance[key] + A @ relevance[key]
    relevance[stream, stream] = A if own is None else own + A + A @ own


def _normalised(minus_identity: Tensor, normalise: bool) -> tuple[Tensor, Tensor]:
    """N(R) - I of R - I, and which rows (T, N, 1) have no sum to be divided by."""
    if not normalise:
        return minus_identity, torch.zeros_like(minus_identity[..., :1], dtype=torch.bool)
    sums = minus_identity.sum(-1, keepdim=True)
    return minus_identity / sums.masked_fill(sums == 0, 1), sums == 0


def _matrix(site: Site, maps: Mapping[str, LinearMap]) -> Tensor:
    layer = maps[site.module]
    if not isinstance(layer, DenseMap):
        raise ValueError(
            f"{site.module} is deformable attention in a network whose streams read each other; generic relevance "
            "explains these with dense attention only"
        )
    return layer.matrix
