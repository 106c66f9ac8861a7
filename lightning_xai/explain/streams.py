"""How a network declares what its attention connects: streams of tokens and the sites between them.

A *stream* is a sequence of tokens (`image`, `text`, `query`, `region`, `node`); its *layout* says where each token lies
in the input. A *site* is one attention module: it writes one stream and reads one stream. Networks declare both;
explanation methods read nothing else of a network.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class FeatureLevels:
    """Tokens are the cells of one or several grids laid over the (padded) image, level after level, row by row.

    shapes: (h, w) of each level. valid_ratios: (B, L, 2), the share (x, y) of each level's map that the image fills.
    """

    shapes: tuple[tuple[int, int], ...]
    valid_ratios: Tensor | None = None


@dataclass(frozen=True)
class Patches:
    """Tokens are the cells of one grid over the whole image, row by row, after `prefix` tokens that lie nowhere.

    shape: (h, w) of the grid. prefix: class, distillation and register tokens.
    """

    shape: tuple[int, int]
    prefix: int = 1


@dataclass(frozen=True)
class ChosenPatches:
    """Tokens are some cells of one grid over the whole image, others in each sample, after `prefix` tokens.

    shape: (h, w) of the grid. cells: (B, N - prefix) int64, the cell of each token, counted row by row.
    """

    shape: tuple[int, int]
    cells: Tensor
    prefix: int = 1


@dataclass(frozen=True)
class Words:
    """Tokens are pieces of text; texts: those of each sample, in the order of the stream, without padding.

    A piece that ends a word ends with a space. marks: pieces that nobody wrote, as the start and the end of a text.
    """

    texts: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ObjectQueries:
    """Tokens are a detector's queries; they lie where the network's boxes say."""

    count: int


@dataclass(frozen=True)
class Stream:
    """A named sequence of tokens and how it lies in the input."""

    name: str
    layout: FeatureLevels | Patches | ChosenPatches | Words | ObjectQueries


@dataclass(frozen=True)
class Site:
    """One attention module.

    module: its dotted name in the network. kind: "dense" attention gives probabilities (B, H, Q, K), "deformable" gives
    sampling locations and weights. writes, reads: names of streams. part, layer: where it stands in the network; a
    decoder's self- and cross-attention are two sites of the same layer.
    """

    module: str
    kind: Literal["dense", "deformable"]
    writes: str
    reads: str
    part: str
    layer: int
