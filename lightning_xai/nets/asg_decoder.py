"""The captioner's decoder: two LSTM cells, attention by content and along the graph, and a memory that words rewrite.

Letters: B graphs, N nodes (padded), R rows: the nodes of the batch that are no padding, one after another, C channels,
T words, V vocabulary. Names of the modules are those of the published checkpoints.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_xai.nets.packed_linear import Map, linear_map


class Rows(NamedTuple):
    """Which nodes of a padded batch are worked on.

    mask: (B, N) bool, the nodes that may be attended to. sample: (R,) the graph of each row. place: (R,) where the row
    lies among the B * N nodes. table: (B, N) the row of each node, -1 where it has none.
    """

    mask: Tensor
    sample: Tensor
    place: Tensor
    table: Tensor

    def spread(self, values: Tensor) -> Tensor:
        """What the graphs have (B, C), to their nodes (R, C)."""
        return values.index_select(0, self.sample)

    def of(self, values: Tensor) -> Tensor:
        """The rows (R, ...) of what all nodes have (B, N, ...)."""
        return values.flatten(0, 1).index_select(0, self.place)

    def padded(self, values: Tensor) -> Tensor:
        """What the rows have (R, C), with zeros where a node has no row: (B, N, C)."""
        everywhere = values.new_zeros(self.mask.numel(), values.shape[1])
        return everywhere.index_copy(0, self.place, values).unflatten(0, self.mask.shape)

    def read(self, weights: Tensor, values: Tensor) -> Tensor:
        """sum_n a_n V_n: (B, C), from weights (B, N) and values (R, C)."""
        each = values.new_zeros(len(weights), len(self.place))
        row = torch.arange(len(self.place), device=values.device)
        return each.index_put((self.sample, row), self.of(weights).to(values.dtype)) @ values


def rows_of(mask: Tensor, padded: bool = False) -> Rows:
    """The rows of a mask (B, N) bool; padded: padded nodes are worked on too, and still never attended to."""
    taken = torch.ones_like(mask) if padded else mask
    place = taken.flatten().nonzero().squeeze(1)
    table = torch.full_like(mask, -1, dtype=torch.int64)
    table.view(-1)[place] = torch.arange(len(place), device=mask.device)
    return Rows(mask, place // mask.shape[1], place, table)


class Encoded(NamedTuple):
    """What words do not change.

    gates: (B, 4 C), what image and graph add to the attention LSTM's. flow_edges: (B, N, N) or None. keys, values:
    (R, C) where the memory is never rewritten, else None. maps: the decoder's linear maps.
    """

    rows: Rows
    gates: Tensor
    flow_edges: Tensor | None
    keys: Tensor | None
    values: Tensor | None
    maps: dict[str, Map]


class State(NamedTuple):
    """What goes from word to word: hidden and cell of both LSTMs (B, C), the last attention (B, N), memory (R, C)."""

    attn_h: Tensor
    attn_c: Tensor
    lang_h: Tensor
    lang_c: Tensor
    attention: Tensor
    memory: Tensor


class GraphDecoder(nn.Module):
    """One word after another, each from the nodes it attends to.

    flow: attention also moves along the graph's edges from where it was. memory: each word erases and adds to the codes
    of the nodes it attended to. attention: "mlp", "general" or "dot". separate_values: what is read of a node is a map
    of its code instead of the code. tied: logits are products with the word embeddings; hidden2word: after a map and
    tanh. dropout acts on what the logits read.
    """

    def __init__(
        self,
        vocabulary: int,
        word_dim: int,
        hidden_dim: int,
        flow: bool,
        memory: bool,
        attention: str,
        separate_values: bool,
        tied: bool,
        hidden2word: bool,
        dropout: float,
    ):
        super().__init__()
        self.embedding = nn.ModuleDict({"we": nn.Embedding(vocabulary, word_dim)})
        self.attn_lstm = nn.LSTMCell(2 * hidden_dim + word_dim, hidden_dim)  # of [language h, image and graph, word]
        self.lang_lstm = nn.LSTMCell(2 * hidden_dim, hidden_dim)  # of [attention h, context]
        self.attn = ATTENTIONS[attention](hidden_dim)
        self.attn_linear_context = (
            nn.Linear(hidden_dim, hidden_dim, bias=False) if attention == "mlp" else nn.Identity()
        )
        if separate_values:
            self.memory_value_layer = nn.Linear(hidden_dim, hidden_dim)
        self.hidden2word = nn.Linear(hidden_dim, word_dim) if hidden2word else None
        self.fc = None if tied else nn.Linear(word_dim if hidden2word else hidden_dim, vocabulary)
        if flow:
            self.address_layer = two_layers(2 * hidden_dim, hidden_dim, 1 + 3)
        if memory:
            self.memory_update_layer = two_layers(2 * hidden_dim, hidden_dim, 2 * hidden_dim)
            self.sentinal_layer = two_layers(hidden_dim, hidden_dim, 1)
        self.hidden_dim, self.flow, self.memory, self.separate_values = hidden_dim, flow, memory, separate_values
        self.dropout = dropout
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        words = self.embedding["we"].weight
        nn.init.uniform_(words, -(words.shape[1] ** -0.5), words.shape[1] ** -0.5)
        for cell in (self.attn_lstm, self.lang_lstm):
            for weight, bias in ((cell.weight_ih, cell.bias_ih), (cell.weight_hh, cell.bias_hh)):
                nn.init.orthogonal_(weight)
                nn.init.zeros_(bias)
            cell.bias_ih[self.hidden_dim : 2 * self.hidden_dim] = 1  # forget little at first

    def maps(self) -> dict[str, Map]:
        """The linear maps of a step, with the weights as they are now."""
        hidden, attn, lang = self.hidden_dim, self.attn_lstm, self.lang_lstm
        maps = {
            "word": linear_map(attn.weight_ih[:, 2 * hidden :]),
            "attn": linear_map(torch.cat([attn.weight_ih[:, :hidden], attn.weight_hh], 1)),
            "lang": linear_map(torch.cat([lang.weight_ih, lang.weight_hh], 1), lang.bias_ih + lang.bias_hh),
            "query": self.attn.query_map(),
            "key": layer_map(self.attn_linear_context),
            "logits": linear_map(self.embedding["we"].weight) if self.fc is None else layer_map(self.fc),
        }
        if self.separate_values:
            maps["value"] = layer_map(self.memory_value_layer)
        if self.flow:
            maps |= {"address": layer_map(self.address_layer[0]), "moves": layer_map(self.address_layer[2])}
        if self.memory:
            first, _, second = self.memory_update_layer
            # of [language h, node]; the first part is alike for all nodes of a graph
            maps |= {"change_h": linear_map(first.weight[:, :hidden], first.bias)}
            maps |= {"change_node": linear_map(first.weight[:, hidden:]), "change": layer_map(second)}
            maps |= {"gate": layer_map(self.sentinal_layer[0]), "sentinel": layer_map(self.sentinal_layer[2])}
        return maps

    def encoded(self, nodes: Tensor, summary: Tensor, rows: Rows, flow_edges: Tensor | None) -> tuple[Encoded, State]:
        """Before the first word: nodes (R, C), summary of image and graph (B, C), flow_edges (B, N, N)."""
        cell, hidden, maps = self.attn_lstm, self.hidden_dim, self.maps()
        gates = F.linear(summary, cell.weight_ih[:, hidden : 2 * hidden], cell.bias_ih + cell.bias_hh)
        keys, values = (None, None) if self.memory else self.keys_and_values(nodes, maps)
        zeros = summary.new_zeros(len(summary), hidden)
        attention = torch.zeros_like(rows.mask, dtype=torch.promote_types(nodes.dtype, torch.float32))
        attention[:, 0] = rows.mask.any(1).to(attention.dtype)
        edges = flow_edges.to(attention.dtype) if self.flow else None
        state = State(zeros, zeros, zeros, zeros, attention, nodes)
        return Encoded(rows, gates, edges, keys, values, maps), state

    def word_gates(self, words: Tensor, graph: Encoded) -> Tensor:
        """What words (...) add to the attention LSTM's gates: (..., 4 C)."""
        return graph.maps["word"](self.embedding["we"](words))

    def keys_and_values(self, memory: Tensor, maps: dict[str, Map]) -> tuple[Tensor, Tensor]:
        """What attention compares with and what it reads: (R, C) each, of memory (R, C)."""
        return maps["key"](memory), maps["value"](memory).relu() if self.separate_values else memory

    def step(self, gates: Tensor, graph: Encoded, state: State) -> tuple[dict[str, Tensor], State]:
        """One word further: what was attended to and the gates, and the new state.

        gates: (B, 4 C), `word_gates` of the words before. The first dictionary has `attention`, `content_attention`
        (B, N), `context`, `attn_lstm_h`, `attn_lstm_c`, `lang_lstm_h`, `lang_lstm_c` (B, C); with flow
        `interpolate_gate` (B, 1), the weight of content, and `flow_gate` (B, 3) of staying, one and two edges; with
        memory `memory_before_write`, `erase_gate`, `add_vector` (R, C), `sentinel_gate` (B, 1).
        """
        rows, maps, memory = graph.rows, graph.maps, state.memory
        keys, values = self.keys_and_values(memory, maps) if self.memory else (graph.keys, graph.values)
        gates = graph.gates + gates + maps["attn"](torch.cat([state.lang_h, state.attn_h], 1))
        attn_h, attn_c = lstm(gates, state.attn_c)

        content = self.attn(maps["query"](attn_h), keys, rows)
        done = {"content_attention": content}
        if self.flow:
            address = maps["address"](torch.cat([attn_h, rows.read(state.attention, values)], 1)).relu()
            interpolate, moves = maps["moves"](address).split([1, 3], 1)
            interpolate, moves = interpolate.sigmoid(), moves.softmax(1)
            attention = interpolate * content + (1 - interpolate) * flowed(state.attention, graph.flow_edges, moves)
            done |= {"interpolate_gate": interpolate, "flow_gate": moves}
        else:
            attention = content
        context = rows.read(attention, values)
        lang_h, lang_c = lstm(maps["lang"](torch.cat([attn_h, context, state.lang_h], 1)), state.lang_c)

        if self.memory:
            change = maps["change_node"](memory) + rows.spread(maps["change_h"](lang_h))
            erase, add = maps["change"](change.relu()).chunk(2, 1)
            erase, sentinel = erase.sigmoid(), maps["sentinel"](maps["gate"](lang_h).relu()).sigmoid()
            weight = rows.of(attention * sentinel)[:, None]
            done |= {"memory_before_write": memory, "erase_gate": erase, "add_vector": add, "sentinel_gate": sentinel}
            # autocast adds up in float32; a network of another type goes on in its own
            memory = (memory + weight * (add - erase * memory)).to(self.attn_lstm.weight_ih.dtype)
        done |= {"attention": attention, "context": context}
        done |= {"attn_lstm_h": attn_h, "attn_lstm_c": attn_c, "lang_lstm_h": lang_h, "lang_lstm_c": lang_c}
        return done, State(attn_h, attn_c, lang_h, lang_c, attention, memory)

    def logits(self, lang_h: Tensor, graph: Encoded, dropout: bool = True) -> Tensor:
        """Scores of the words (..., V), from what the language LSTM says (..., C); dropout only while training."""
        if self.hidden2word is not None:
            lang_h = self.hidden2word(lang_h).tanh()
        return graph.maps["logits"](F.dropout(lang_h, self.dropout, self.training and dropout))


class MLPAttention(nn.Module):
    """s_n = w^T tanh(W h + b + K_n)."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.linear_query = nn.Linear(hidden_dim, hidden_dim)
        self.attn_w = nn.Linear(hidden_dim, 1, bias=False)

    def query_map(self) -> Map:
        return layer_map(self.linear_query)

    def forward(self, query: Tensor, keys: Tensor, rows: Rows) -> Tensor:
        """Attention (B, N) by content, of the mapped query (B, C) and keys (R, C)."""
        return attend(self.attn_w((keys + rows.spread(query)).tanh()).squeeze(1), rows)


class GeneralAttention(nn.Module):
    """s_n = K_n . W h."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.linear_in = nn.Linear(hidden_dim, hidden_dim, bias=False)

    def query_map(self) -> Map:
        return layer_map(self.linear_in)

    def forward(self, query: Tensor, keys: Tensor, rows: Rows) -> Tensor:
        return attend((keys * rows.spread(query)).sum(1), rows)


class DotAttention(nn.Module):
    """s_n = K_n . h."""

    def __init__(self, hidden_dim: int):
        super().__init__()

    def query_map(self) -> Map:
        return nn.Identity()

    def forward(self, query: Tensor, keys: Tensor, rows: Rows) -> Tensor:
        return attend((keys * rows.spread(query)).sum(1), rows)


ATTENTIONS = {"mlp": MLPAttention, "general": GeneralAttention, "dot": DotAttention}


def attend(scores: Tensor, rows: Rows) -> Tensor:
    """Softmax of the rows' scores (R,) over each graph's nodes: (B, N), zeros on padding and for a graph of no node."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    worst = torch.finfo(scores.dtype).min
    padded = scores.new_full((rows.mask.numel(),), worst).index_copy(0, rows.place, scores).view_as(rows.mask)
    return padded.masked_fill(~rows.mask, worst).softmax(1).masked_fill(~rows.mask, 0)


def flowed(attention: Tensor, edges: Tensor, moves: Tensor) -> Tensor:
    """Attention (B, N) that stays, goes along one edge or along two, mixed by moves (B, 3).

    edges: (B, target, source), columns sum to 1.
    """
    once = (edges @ attention[..., None]).squeeze(-1)
    twice = (edges @ once[..., None]).squeeze(-1)
    return (moves[:, None] * torch.stack([attention, once, twice], 2)).sum(2)


def lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden and cell (B, C) of an LSTM from its gates (B, 4 C): input, forget, cell, output."""
    enter, forget, new, leave = gates.chunk(4, 1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def layer_map(layer: nn.Module) -> Map:
    """A linear layer as a map with the weights as they are now; other layers as they are."""
    return linear_map(layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer


def two_layers(channels: int, hidden_dim: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, out_channels))
