"""The captioner of abstract scene graphs: a sentence about the regions a person chose, in the order their graph says.

Letters: B graphs, N nodes (padded), C channels, T words, V vocabulary. A graph is a dictionary of tensors:

mp_fts (B, C_mp)          feature of the whole image
attn_fts (B, N, C_f)      feature of each node's region, zeros on padding
attn_masks (B, N)         bool, True for nodes that are no padding
node_types (B, N)         int64, 0 object, 1 attribute, 2 relation                         (not "node")
attr_order_idxs (B, N)    int64, 1, 2, ... of an object's attributes, else 0               (not "node")
rel_edges (B, 6, N, N)    [type, target, source], 1 / in-degree of the target by this type (rgcn)
flow_edges (B, N, N)      [target, source], columns sum to 1                               (flow)

The state dict's names are `part.name` of the published checkpoint {part: {name: tensor}}.
Source: Chen et al., Say As You Wish, CVPR 2020, arXiv 2003.00387; "rgcn.flow.memory" is its ASG2Caption, called EGA in
the work on explanation-guided annotation.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_xai.nets.asg_decoder import ATTENTIONS, Encoded, GraphDecoder, Rows, State, rows_of
from lightning_xai.nets.asg_encoder import ORDERS, NodeEncoder, RelationalEncoder
from lightning_xai.nets.beam_search import Beams, beam_search

BOS, EOS, UNK = 0, 1, 2
MODEL_TYPES = ("node", "node.role", "rgcn", "rgcn.flow", "rgcn.memory", "rgcn.flow.memory")
# What `GraphDecoder.step` says of each word, and what it says of each node.
SHOWN = ("attention", "content_attention", "interpolate_gate", "flow_gate", "sentinel_gate")
NODES = {"memory_before_write", "erase_gate", "add_vector"}


class ASGCaptioner(nn.Module):
    """Codes of the nodes, a summary of image and graph, and a decoder that writes word after word.

    model_type: one of MODEL_TYPES; what its parts mean is said at `NodeEncoder`, `RelationalEncoder` and
    `GraphDecoder`. vocabulary: V. feature_dim, global_dim: channels of regions and of the image. num_layers and
    embed_first are of the relational encoder; published: True for MSCOCO, False for VisualGenome. word_dim: None for
    hidden_dim. Raises ValueError where arguments do not go together.
    """

    def __init__(
        self,
        model_type: str = "rgcn.flow.memory",
        vocabulary: int = 10000,
        feature_dim: int = 2048,
        global_dim: int = 2048,
        hidden_dim: int = 512,
        word_dim: int | None = None,
        num_layers: int = 2,
        embed_first: bool = True,
        attention: str = "mlp",
        separate_values: bool = False,
        tied: bool = True,
        hidden2word: bool = False,
        dropout: float = 0.5,
        num_relations: int = 6,
        num_node_types: int = 3,
    ):
        super().__init__()
        word_dim = hidden_dim if word_dim is None else word_dim
        if model_type not in MODEL_TYPES:
            raise ValueError(f"model_type '{model_type}' must be one of {', '.join(MODEL_TYPES)}")
        if attention not in ATTENTIONS:
            raise ValueError(f"attention '{attention}' must be one of {', '.join(ATTENTIONS)}")
        if tied and not hidden2word and word_dim != hidden_dim:
            raise ValueError(
                f"word_dim={word_dim} differs from hidden_dim={hidden_dim}, so logits cannot be products with word "
                "embeddings: set hidden2word=True or tied=False"
            )
        if vocabulary <= UNK:
            raise ValueError(f"vocabulary={vocabulary} words: the first three mark start, end and unknown words")
        self.model_type = model_type
        parts = model_type.split(".")
        self.mp_encoder = nn.ModuleDict({"ft_embed": nn.Linear(global_dim + hidden_dim, hidden_dim)})
        if "rgcn" in parts:
            self.attn_encoder = RelationalEncoder(
                feature_dim, hidden_dim, num_node_types, num_relations, num_layers, embed_first
            )
        else:
            self.attn_encoder = NodeEncoder(feature_dim, hidden_dim, num_node_types, roles="role" in parts)
        self.decoder = GraphDecoder(
            vocabulary,
            word_dim,
            hidden_dim,
            flow="flow" in parts,
            memory="memory" in parts,
            attention=attention,
            separate_values=separate_values,
            tied=tied,
            hidden2word=hidden2word,
            dropout=dropout,
        )
        # the tensors of a graph that are read, and their axes; a letter is any length
        self.needs: dict[str, tuple] = {"mp_fts": ("B", global_dim), "attn_fts": ("B", "N", feature_dim)}
        self.needs |= {"attn_masks": ("B", "N")}
        if model_type != "node":
            self.needs |= {"node_types": ("B", "N"), "attr_order_idxs": ("B", "N")}
        if "rgcn" in parts:
            self.needs |= {"rel_edges": ("B", num_relations, "N", "N")}
        if "flow" in parts:
            self.needs |= {"flow_edges": ("B", "N", "N")}

    @property
    def vocabulary(self) -> int:
        """V, the number of words."""
        return self.decoder.embedding["we"].num_embeddings

    def forward(self, graph: Mapping[str, Tensor], captions: Tensor, details: bool = False) -> dict[str, Tensor]:
        """What the network says at each word of captions (B, T) that start with BOS, given the words before it.

        logits (B, T - 1, V) of captions[:, 1:], attention and content_attention (B, T - 1, N), and where the model has
        them interpolate_gate, sentinel_gate (B, T - 1, 1) and flow_gate (B, T - 1, 3). details: also nodes (B, N, C),
        summary (B, C) and all else that `GraphDecoder.step` names, a node's things as (B, T - 1, N, C). Raises
        ValueError for a graph that lacks something, and for orders of attributes and words that there are none of.
        """
        if captions.shape[1] < 2 or int(captions.max()) >= self.vocabulary:
            raise ValueError(
                f"captions of {captions.shape[1]} words with numbers up to {int(captions.max())}: there must be a "
                f"start and at least one word, and numbers below vocabulary={self.vocabulary}"
            )
        # padded nodes are worked on only where someone wants to see them
        rows, nodes, summary = self.encode(graph, padded=details)
        encoded, state = self.decoder.encoded(nodes, summary, rows, graph.get("flow_edges"))
        steps: list[dict[str, Tensor]] = []
        for gates in self.decoder.word_gates(captions[:, :-1], encoded).unbind(1):
            done, state = self.decoder.step(gates, encoded, state)
            steps.append(done)
        said = {name: torch.stack([step[name] for step in steps], 1) for name in steps[0] if details or name in SHOWN}
        hidden = torch.stack([step["lang_lstm_h"] for step in steps], 1)
        said["logits"] = self.decoder.logits(hidden, encoded)
        if details:
            said |= {"nodes": rows.padded(nodes), "summary": summary}
            for name in NODES & set(said):  # (B * N, T - 1, C)
                said[name] = said[name].unflatten(0, rows.mask.shape).transpose(1, 2)
        return said

    def encode(self, graph: Mapping[str, Tensor], padded: bool = False) -> tuple[Rows, Tensor, Tensor]:
        """Which nodes are worked on, their codes (R, C) and the summary of image and graph (B, C).

        The summary reads the mean of the nodes; of a graph without nodes it is the image's alone. padded: padded nodes
        are worked on too. Raises as `forward`.
        """
        self._check(graph)
        rows = rows_of(graph["attn_masks"], padded)
        nodes = self.attn_encoder(graph, rows)
        share = rows.mask.to(nodes.dtype) / rows.mask.sum(1, keepdim=True).clamp(min=1)
        return rows, nodes, self.mp_encoder["ft_embed"](torch.cat([graph["mp_fts"], rows.read(share, nodes)], 1))

    @torch.no_grad()
    def greedy(self, graph: Mapping[str, Tensor], max_words: int = 25, run_on: bool = False) -> dict[str, Tensor]:
        """The most probable word after each word: words (B, T) without the start, logprobs (B, T), and per word the
        attention and gates that `forward` names.

        T is the longest caption's length with its EOS, or max_words. Behind its EOS a caption has EOS, and zeros
        otherwise; its graph is no longer worked on. run_on: as the reference, all go on until the last has ended; up to
        EOS both are the same.
        """
        if max_words < 1:
            raise ValueError(f"captions of max_words={max_words} were asked for: it must be at least 1")
        rows, nodes, summary = self.encode(graph)
        encoded, state = self.decoder.encoded(nodes, summary, rows, graph.get("flow_edges"))
        count = len(encoded.gates)
        words = encoded.gates.new_full((count,), BOS, dtype=torch.int64)
        active = torch.arange(count, device=words.device)  # which captions are written on
        ended = torch.zeros_like(words, dtype=torch.bool)
        said: dict[str, list[Tensor]] = {}
        for _ in range(max_words):
            step, state = self.decoder.step(self.decoder.word_gates(words, encoded), encoded, state)
            logprobs, words = self._logprobs(step, encoded).max(1)
            now = {name: step[name] for name in SHOWN if name in step}
            now |= {"words": words, "logprobs": logprobs}
            for name, values in now.items():
                whole = values.new_full((count, *values.shape[1:]), EOS if name == "words" else 0)
                said.setdefault(name, []).append(whole.index_copy_(0, active, values))
            ended = ended | (words == EOS)
            if ended.all():
                break
            if not run_on and ended.any():
                going = (~ended).nonzero().squeeze(1)
                encoded, state = taken(encoded, state, going)
                words, active, ended = words[going], active[going], ended[going]
        return {name: torch.stack(values, 1) for name, values in said.items()}

    @torch.no_grad()
    def beam(
        self,
        graph: Mapping[str, Tensor],
        width: int = 5,
        pool: int = 5,
        max_words: int = 25,
        reorder_all: bool = True,
    ) -> Beams:
        """The best sentences that `beam_search` finds, words without the start.

        reorder_all=False: a beam takes over the LSTMs of the beam that it goes on from, but neither its attention nor
        its memory, which are of another sentence; so did the published code, whose numbers these are.
        """
        rows, nodes, summary = self.encode(graph)
        encoded, state = self.decoder.encoded(nodes, summary, rows, graph.get("flow_edges"))
        expanded = False

        def after(words: Tensor) -> Tensor:
            nonlocal state
            step, state = self.decoder.step(self.decoder.word_gates(words, encoded), encoded, state)
            return self._logprobs(step, encoded)

        def advance(words: Tensor, previous: Tensor) -> Tensor:
            nonlocal encoded, state, expanded
            if not expanded:
                encoded, state = taken(encoded, state, previous)
                expanded = True
            else:
                other = taken(encoded, state, previous)[1]
                state = other if reorder_all else other._replace(attention=state.attention, memory=state.memory)
            return after(words)

        first = after(torch.full((len(encoded.gates),), BOS, device=encoded.gates.device))
        return beam_search(first, advance, width, pool, max_words, EOS)

    def _logprobs(self, step: Mapping[str, Tensor], encoded: Encoded) -> Tensor:
        """Of every word (B, V), never in half precision: many words are about as probable."""
        logits = self.decoder.logits(step["lang_lstm_h"], encoded, dropout=False)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)

    def _check(self, graph: Mapping[str, Tensor]) -> None:
        missing = [name for name in self.needs if name not in graph]
        if missing:
            raise ValueError(f"the graph has no {', '.join(missing)}, which model_type '{self.model_type}' reads")
        lengths = dict(zip("BN", graph["attn_masks"].shape, strict=False))
        for name, axes in self.needs.items():
            expected = tuple(lengths.get(axis, axis) for axis in axes)
            if tuple(graph[name].shape) != expected:
                raise ValueError(f"the graph's {name} have shape {tuple(graph[name].shape)}, expected {expected}")
        if graph["attn_masks"].dtype != torch.bool:
            raise ValueError(f"attn_masks are {graph['attn_masks'].dtype}: they must be bool, True for nodes")
        if "attr_order_idxs" in self.needs and int(graph["attr_order_idxs"].max()) >= ORDERS:
            raise ValueError(
                f"an object has {int(graph['attr_order_idxs'].max())} attributes, but the network tells only "
                f"{ORDERS - 1} apart: leave some out"
            )


def taken(encoded: Encoded, state: State, samples: Tensor) -> tuple[Encoded, State]:
    """What a decoder knows of some of its samples, in any order and as often as they are named (B',)."""
    rows = rows_of(encoded.rows.mask[samples])
    old = encoded.rows.table[samples].flatten()[rows.place]
    of_rows = {"keys": encoded.keys, "values": encoded.values}
    of_rows = {name: None if values is None else values[old] for name, values in of_rows.items()}
    edges = None if encoded.flow_edges is None else encoded.flow_edges[samples]
    values = {name: value[old] if name == "memory" else value[samples] for name, value in state._asdict().items()}
    return Encoded(rows, encoded.gates[samples], edges, maps=encoded.maps, **of_rows), State(**values)
