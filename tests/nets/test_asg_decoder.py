"""The decoder of scene graphs against its formulas, for one graph at a time and with torch's own LSTM cells."""

import pytest
import torch
from torch import nn

from lightning_xai.nets.asg_decoder import GraphDecoder, attend, flowed, lstm, rows_of

MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [True, True, False, False]])


def decoder(flow=True, memory=True, attention="mlp", separate_values=False, **changes):
    torch.manual_seed(0)
    sizes = {"vocabulary": 9, "word_dim": 5, "hidden_dim": 5, "tied": True, "hidden2word": False, "dropout": 0.5}
    net = GraphDecoder(
        **{**sizes, **changes}, flow=flow, memory=memory, attention=attention, separate_values=separate_values
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.7)
    return net.double().eval()


def test_rows_lay_nodes_one_after_another():
    rows = rows_of(MASK)
    assert rows.sample.tolist() == [0, 0, 0, 1, 2, 2] and rows.place.tolist() == [0, 1, 2, 4, 8, 9]
    assert rows.table.tolist() == [[0, 1, 2, -1], [3, -1, -1, -1], [4, 5, -1, -1]]
    values = torch.randn(6, 2)
    assert torch.equal(rows.of(rows.padded(values)), values)
    assert not rows.padded(values)[~MASK].any()
    weights = torch.rand(3, 4)
    expected = (weights[..., None] * rows.padded(values)).sum(1)
    torch.testing.assert_close(rows.read(weights, values), expected)
    everything = rows_of(MASK, padded=True)
    assert everything.place.tolist() == list(range(12)) and torch.equal(everything.mask, MASK)


@pytest.mark.parametrize("padded", [True, False])
def test_attention_sees_no_padding(padded):
    mask = torch.cat([MASK, torch.zeros(1, 4, dtype=torch.bool)])
    rows = rows_of(mask, padded)
    scores = torch.randn(len(rows.place))
    attention = attend(scores, rows)
    assert torch.equal(attention[0, :3], scores[:3].softmax(0))
    assert attention[1].tolist() == [1, 0, 0, 0] and not attention[3].any()
    assert not attention[~mask].any()


def test_attention_flows_along_edges():
    edges = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]])  # 0 -> 1 -> 2 -> 1 or stay
    start = torch.tensor([[1.0, 0.0, 0.0]])
    assert flowed(start, edges, torch.tensor([[1.0, 0.0, 0.0]])).tolist() == [[1, 0, 0]]
    assert flowed(start, edges, torch.tensor([[0.0, 1.0, 0.0]])).tolist() == [[0, 1, 0]]
    assert flowed(start, edges, torch.tensor([[0.0, 0.0, 1.0]])).tolist() == [[0, 0, 1]]
    assert flowed(start, edges, torch.tensor([[0.2, 0.3, 0.5]])).tolist() == [pytest.approx([0.2, 0.3, 0.5])]


def test_lstm_is_torchs():
    cell = nn.LSTMCell(3, 4)
    inputs, hidden, memory = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 4)
    gates = inputs @ cell.weight_ih.T + cell.bias_ih + hidden @ cell.weight_hh.T + cell.bias_hh
    for ours, theirs in zip(lstm(gates, memory), cell(inputs, (hidden, memory)), strict=True):
        torch.testing.assert_close(ours, theirs)


def plain_steps(net, nodes, summary, edges, words):
    """One graph (N, C), word after word: hidden states, attention and memory before each word is written."""
    first = torch.zeros(len(nodes)).double()
    first[0] = 1
    before, memory, said = first, nodes, []
    attn = lang = (torch.zeros(1, 5).double(),) * 2
    for word in words:
        embedded = net.embedding["we"].weight[word]
        attn = net.attn_lstm(torch.cat([lang[0][0], summary, embedded])[None], attn)
        h = attn[0][0]
        values = net.memory_value_layer(memory).relu() if net.separate_values else memory
        if hasattr(net.attn, "attn_w"):
            keys = torch.tanh(net.attn_linear_context(memory) + net.attn.linear_query(h))
            scores = (keys @ net.attn.attn_w.weight.T)[:, 0]
        else:
            scores = memory @ (net.attn.linear_in(h) if hasattr(net.attn, "linear_in") else h)
        attention = scores.softmax(0)
        if net.flow:
            address = net.address_layer(torch.cat([h, before @ values]))
            beta, moves = address[0].sigmoid(), address[1:].softmax(0)
            flow = moves[0] * before + moves[1] * edges @ before + moves[2] * edges @ edges @ before
            attention = beta * attention + (1 - beta) * flow
        lang = net.lang_lstm(torch.cat([h, attention @ values])[None], lang)
        said.append((lang[0][0], attention, memory))
        if net.memory:
            gate = net.sentinal_layer(lang[0][0]).sigmoid()
            changed = []
            for node, weight in zip(memory, attention * gate, strict=True):
                change = net.memory_update_layer(torch.cat([lang[0][0], node]))
                changed.append(node * (1 - weight * change[:5].sigmoid()) + weight * change[5:])
            memory = torch.stack(changed)
        before = attention
    return [torch.stack(values) for values in zip(*said, strict=True)]


@pytest.mark.parametrize(
    "changes",
    [
        {"flow": False, "memory": False},
        {"flow": False, "memory": False, "attention": "dot"},
        {"flow": True, "memory": False},
        {"flow": False, "memory": True},
        {"flow": True, "memory": True},
        {"flow": True, "memory": True, "attention": "general", "separate_values": True},
    ],
    ids=str,
)
def test_steps_are_the_formulas(changes):
    net = decoder(**changes)
    rows = rows_of(MASK)
    nodes, summary = torch.randn(6, 5).double(), torch.randn(3, 5).double()
    edges = torch.rand(3, 4, 4).double() * MASK[:, None] * MASK[..., None]
    edges = edges / edges.sum(1, keepdim=True).clamp(min=1e-9)
    words = torch.tensor([[0, 4, 7, 1], [0, 3, 3, 8], [0, 8, 2, 5]])
    encoded, state = net.encoded(nodes, summary, rows, edges)
    said = []
    for gates in net.word_gates(words, encoded).unbind(1):
        step, state = net.step(gates, encoded, state)
        said.append(step)
    for sample, count in enumerate(MASK.sum(1).tolist()):
        own = nodes[rows.sample == sample]
        hidden, attention, memory = plain_steps(net, own, summary[sample], edges[sample, :count, :count], words[sample])
        torch.testing.assert_close(torch.stack([s["lang_lstm_h"][sample] for s in said]), hidden)
        torch.testing.assert_close(torch.stack([s["attention"][sample, :count] for s in said]), attention)
        if net.memory:
            ours = torch.stack([s["memory_before_write"][rows.sample == sample] for s in said])
            torch.testing.assert_close(ours, memory)


def test_logits_of_each_kind():
    for tied, hidden2word in ((True, False), (True, True), (False, False), (False, True)):
        net = decoder(tied=tied, hidden2word=hidden2word)
        encoded, _ = net.encoded(torch.randn(6, 5).double(), torch.randn(3, 5).double(), rows_of(MASK), MASK.double())
        hidden = torch.randn(3, 5).double()
        out = net.hidden2word(hidden).tanh() if hidden2word else hidden
        expected = out @ net.embedding["we"].weight.T if tied else net.fc(out)
        torch.testing.assert_close(net.logits(hidden, encoded), expected)
        net.train()
        assert not torch.equal(net.logits(hidden, encoded), expected)  # dropout
        torch.testing.assert_close(net.logits(hidden, encoded, dropout=False), expected)


def test_forget_gates_start_open():
    net = GraphDecoder(9, 5, 5, True, True, "mlp", False, True, False, 0.5)
    for cell in (net.attn_lstm, net.lang_lstm):
        assert cell.bias_ih.tolist() == [0] * 5 + [1] * 5 + [0] * 10 and not cell.bias_hh.any()
    assert net.embedding["we"].weight.abs().max() <= 5**-0.5
