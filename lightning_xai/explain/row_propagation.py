"""Rows of products of attention operators, layer by layer and without the products.

A row that is read out needs one vector a layer, where the matrix of a chain needs N x N x N multiplications a layer.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_xai.explain.influence import influencing_tokens
from lightning_xai.explain.linear_maps import LinearMap, row_weights
from lightning_xai.explain.recording import Recording
from lightning_xai.explain.streams import Site
from lightning_xai.explain.targets import Targets

StartLayer = int | Mapping[str, int]


def sites_from(sites: Sequence[Site], start_layer: StartLayer) -> list[Site]:
    """The sites of the layers from `start_layer` on, which counts from the end if negative, or is one for each part.

    Raises ValueError for a layer or part that does not exist.
    """
    layers = {part: sorted({site.layer for site in sites if site.part == part}) for part in {s.part for s in sites}}
    starts = dict.fromkeys(layers, start_layer) if isinstance(start_layer, int) else dict(start_layer)
    for part, start in starts.items():
        if part not in layers:
            raise ValueError(f"start_layer names the part {part!r}; the network has {', '.join(sorted(layers))}")
        if not -len(layers[part]) <= start < len(layers[part]):
            raise ValueError(
                f"start_layer is {start}, but the layers of the {part} go from 0 to {len(layers[part]) - 1}"
            )
    first = {part: numbers[starts.get(part, 0)] for part, numbers in layers.items()}
    return [site for site in sites if site.layer >= first[site.part]]


def sources_of(sites: Sequence[Site], stream: str) -> list[str]:
    """The streams that a stream reads, itself included, in order of the sites."""
    found = dict.fromkeys([stream, *(site.reads for site in sites if site.writes == stream)])
    return list(found)


def read_rows(rows: Tensor, like: LinearMap, count: int) -> Tensor:
    """What is read of `count` tokens, as rows (T, 1, count): 1 at a token (T,), or the weights (T, count)."""
    return row_weights(rows, count).to(like.dtype)[:, None]


def row_of_product(maps: Sequence[LinearMap], row: Tensor, identity: float, normalise: bool) -> Tensor:
    """r (A_n + i I) ... (A_1 + i I) of rows r (T, 1, N), the first map being the first layer.

    normalise: the rows of every factor are divided by their sums.
    """
    for layer in reversed(maps):
        if normalise:
            row = row / (layer.row_sums() + identity)[:, None]
        row = layer.mix_back(row) + identity * row
    return row


def column_of_product(maps: Sequence[LinearMap], column: Tensor, identity: float, normalise: bool) -> Tensor:
    """(A_n + i I) ... (A_1 + i I) c of columns c (T, N, 1), the rows of every factor divided by their sums on wish."""
    for layer in maps:
        column = layer.mix(column) + identity * column
        if normalise:
            column = column / (layer.row_sums() + identity)[..., None]
    return column


def rows_of_products(
    recording: Recording,
    maps: Mapping[str, LinearMap],
    targets: Targets,
    identity: float = 1.0,
    normalise: bool = False,
) -> dict[str, Tensor]:
    """Relevance of a chain of layers; M_s is the product of A + i I over the self-attentions of s, later on the left.

    The rows of M_s for the stream s that is read out, and of M_s^T A M_b for a stream b that it reads, where A is the
    last of its attentions to b: {stream: (T, N)}. Rows of A of tokens on which what is read cannot depend, such as
    padding, are left out. maps: the operators of the sites that take part, by module.
    Source: Chefer et al., ICCV 2021, supplementary (rollout for encoder-decoder networks).
    """
    sites = [site for site in recording.sites if site.module in maps]

    def self_maps(stream: str) -> list[LinearMap]:
        return [maps[site.module] for site in sites if site.writes == site.reads == stream]

    result: dict[str, Tensor] = {}
    for stream, tokens in targets.rows.items():
        written = [site for site in sites if site.writes == stream]
        if not written:
            raise ValueError(
                f"targets read the stream {stream!r}, which no attention writes; the written ones are "
                f"{', '.join(dict.fromkeys(site.writes for site in sites))}"
            )
        count = recording[written[0].module].queries
        unit = read_rows(tokens, maps[written[0].module], count)
        present = influencing_tokens(recording, {stream: tokens}, targets.samples)[stream]
        for source in sources_of(sites, stream):
            if source == stream:
                row = row_of_product(self_maps(stream), unit, identity, normalise)
            else:
                last = [site for site in written if site.reads == source][-1]
                column = column_of_product(self_maps(stream), unit.transpose(1, 2), identity, normalise)
                row = maps[last.module].mix_back(column.transpose(1, 2) * present[:, None])
                row = row_of_product(self_maps(source), row, identity, normalise)
            result[source] = row[:, 0] + result.get(source, 0)
    return result
