"""Captioning abstract scene graphs beside a straightforward decoder.

usage: python tools/benchmark_captioning.py [SECTION ...] [--threads N] [--pairs N]     (default: all sections)

greedy    64 captions of published sizes (features 2048, hidden 512, 10,000 words, at most 10 nodes, 25 words) for every
          model type, encoder included; once with captions that end after 8 to 16 words, 10.5 on average as MSCOCO's,
          once with captions that never end
training  forward and backward of 64 captions of 12 words, start and end beside them

The peer is the decoder as its formulas stand: a loop over words that computes keys and values of all nodes, padding
included, at each word, joins all inputs of each LSTM, and goes on until the last caption has ended. Graphs have 3 to 9
nodes, 6 on average. Both sides run in turns; the ratio is the median over pairs of CPU seconds, the wall time is
printed beside it. Outputs are compared first, so that a fast wrong answer fails.
"""

import argparse
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from benchmark import paired
from torch import Tensor

from lightning_xai.nets.asg_captioner import BOS, EOS, MODEL_TYPES, ASGCaptioner
from lightning_xai.tasks.caption_loss import caption_loss

WORDS, VOCABULARY = 25, 10000


class PlainDecoder:
    """One word at a time, everything computed anew: what `GraphDecoder` computes, formula by formula."""

    def __init__(self, net: ASGCaptioner, graph: Mapping[str, Tensor]):
        rows, nodes, summary = net.encode(graph, padded=True)
        self.parts, self.mask, self.summary = net.decoder, graph["attn_masks"].float(), summary
        self.edges, self.memory = graph["flow_edges"], rows.padded(nodes)
        self.attention = torch.zeros_like(self.mask)
        self.attention[:, 0] = 1
        zeros = summary.new_zeros(len(summary), net.decoder.hidden_dim)
        self.attn = self.lang = (zeros, zeros)

    def hidden(self, words: Tensor) -> Tensor:
        """The language LSTM's hidden state (B, C) after words (B,)."""
        net, memory, mask = self.parts, self.memory, self.mask
        inputs = torch.cat([self.lang[0], self.summary, net.embedding["we"](words)], 1)
        self.attn = net.attn_lstm(inputs, self.attn)
        query = net.attn.linear_query(self.attn[0])
        keys = net.attn_linear_context(memory)
        scores = net.attn.attn_w((query[:, None] + keys).tanh()).squeeze(2) * mask
        content = scores.masked_fill(mask == 0, -1e18).softmax(1) * mask
        attention = content
        if net.flow:
            before = (self.attention[..., None] * memory).sum(1)
            address = net.address_layer(torch.cat([self.attn[0], before], 1))
            gate, moves = address[:, :1].sigmoid(), address[:, 1:].softmax(1)
            once = torch.einsum("bts,bs->bt", self.edges, self.attention)
            twice = torch.einsum("bts,bs->bt", self.edges, once)
            flow = (moves[:, None] * torch.stack([self.attention, once, twice], 2)).sum(2)
            attention = gate * content + (1 - gate) * flow
        context = (attention[..., None] * memory).sum(1)
        self.lang = net.lang_lstm(torch.cat([self.attn[0], context], 1), self.lang)
        if net.memory:
            both = torch.cat([self.lang[0][:, None].expand(-1, memory.shape[1], -1), memory], 2)
            erase, add = net.memory_update_layer(both).chunk(2, 2)
            weight = (attention * net.sentinal_layer(self.lang[0]).sigmoid())[..., None]
            self.memory = memory * (1 - weight * erase.sigmoid()) + weight * add
        self.attention = attention
        return self.lang[0]

    def logits(self, words: Tensor) -> Tensor:
        return F.linear(self.hidden(words), self.parts.embedding["we"].weight)


def plain_greedy(net: ASGCaptioner, graph: Mapping[str, Tensor]) -> Tensor:
    decoder = PlainDecoder(net, graph)
    words = graph["mp_fts"].new_full((len(graph["mp_fts"]),), BOS, dtype=torch.int64)
    said, going = [], torch.ones_like(words, dtype=torch.bool)
    for _ in range(WORDS):
        words = decoder.logits(words).log_softmax(1).topk(1).indices.squeeze(1)
        said.append(words)
        going &= words != EOS
        if not going.any():
            break
    return torch.stack(said, 1)


def a_graph(net: ASGCaptioner, captions: int, nodes: int = 10, features: int = 2048) -> dict[str, Tensor]:
    """Chains of an object, an attribute, a relation, an object ... with edges as the reader makes them."""
    count = torch.randint(3, nodes, (captions,))
    mask = torch.arange(nodes)[None] < count[:, None]
    chain = torch.eye(nodes).roll(1, 0).expand(captions, -1, -1) * mask[:, None] * mask[..., None]
    types = torch.arange(nodes).remainder(3).expand(captions, -1)
    graph = {
        "mp_fts": torch.randn(captions, features).relu(),
        "attn_fts": torch.randn(captions, nodes, features).relu() * mask[..., None],
        "attn_masks": mask,
        "node_types": types * mask,
        "attr_order_idxs": (types == 1) * mask * 1,
        "rel_edges": torch.stack([chain, chain.mT] * 3, 1),
        "flow_edges": chain + torch.diag_embed((chain.sum(1) == 0) & mask),
    }
    return graph


@torch.no_grad()
def end_after(net: ASGCaptioner, graph: dict[str, Tensor], lengths: Tensor) -> None:
    """Give a network a clock, so that captions end after so many words (B,), EOS included.

    The image's first feature says how far unit 0 of the language LSTM goes at each word, and the score of EOS exceeds
    all others when it has passed unit 1, which stands still.
    """
    hidden, on, off = net.decoder.hidden_dim, 20.0, -20.0
    for cell, unit, gates in (
        (net.decoder.attn_lstm, 0, (on, off, 0.0, on)),
        (net.decoder.lang_lstm, 0, (on, on, 0.0, on)),
        (net.decoder.lang_lstm, 1, (on, off, on, on)),
    ):
        rows = torch.arange(4) * hidden + unit
        for values in cell.parameters():
            values[rows] = 0
        cell.bias_ih[rows] = torch.tensor(gates)
    net.decoder.attn_lstm.weight_ih[2 * hidden, hidden] = 1  # the first number of the summary
    net.decoder.lang_lstm.weight_ih[2 * hidden, 0] = 1  # the attention LSTM's unit 0
    net.mp_encoder["ft_embed"].weight[0] = 0
    net.mp_encoder["ft_embed"].weight[0, 0] = 1
    net.mp_encoder["ft_embed"].bias[0] = 0
    words = net.decoder.embedding["we"].weight
    words[:, :2] = 0
    words[EOS] = 0
    words[EOS, :2] = torch.tensor([1000.0, -1000.0])
    graph["mp_fts"][:, 0] = (1 / (lengths - 0.5)).atanh().atanh().atanh()


def check_words(ours: Tensor, theirs: Tensor, lengths: Tensor) -> None:
    """The same words up to the end, which is where it was asked for."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    behind = torch.arange(ours.shape[1])[None] >= lengths[:, None]
    assert torch.equal(ours, theirs.masked_fill(behind, EOS))
    within = lengths <= ours.shape[1]
    assert torch.equal(ours[within].gather(1, lengths[within, None] - 1), torch.full((int(within.sum()), 1), EOS))


@torch.no_grad()
def greedy(pairs: int, captions: int = 64) -> None:
    forever = torch.full((captions,), 10 * WORDS)
    real = (10.5 + 2.2 * torch.randn(captions)).round().long().clamp(8, 16)
    for name, lengths in (("", real), (", no end", forever)):
        for model_type in MODEL_TYPES:
            net = ASGCaptioner(model_type, VOCABULARY).eval()
            graph = a_graph(net, captions)
            end_after(net, graph, lengths)
            check_words(net.greedy(graph, WORDS)["words"], plain_greedy(net, graph), lengths)
            paired(model_type + name, lambda: net.greedy(graph, WORDS), lambda: plain_greedy(net, graph), pairs)  # noqa: B023
    print(f"  captions that end have {real.float().mean():.1f} words on average, at most {int(real.max())}")


def training(pairs: int, captions: int = 64, length: int = 14) -> None:
    words = torch.randint(3, VOCABULARY, (captions, length))
    mask = torch.ones(captions, length)
    for model_type in MODEL_TYPES:
        net = ASGCaptioner(model_type, VOCABULARY, dropout=0)
        graph = a_graph(net, captions)

        def ours(net=net, graph=graph) -> Tensor:
            net.zero_grad()
            loss = caption_loss(net(graph, words)["logits"], words, mask)
            loss.backward()
            return loss

        def peer(net=net, graph=graph) -> Tensor:
            net.zero_grad()
            decoder = PlainDecoder(net, graph)
            logits = [decoder.logits(words[:, t]) for t in range(length - 1)]
            loss = caption_loss(torch.stack(logits, 1), words, mask)
            loss.backward()
            return loss

        torch.testing.assert_close(ours(), peer())
        paired(model_type, ours, peer, pairs)


SECTIONS: dict[str, Callable[[int], None]] = {"greedy": greedy, "training": training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for name in options.sections or SECTIONS:
        print(f"{name} ({options.threads} threads)", flush=True)
        SECTIONS[name](options.pairs)


if __name__ == "__main__":
    main()
