"""Encoders of scene graphs against their formulas, written as loops."""

import math

import pytest
import torch

from lightning_xai.nets.asg_decoder import rows_of
from lightning_xai.nets.asg_encoder import NodeEncoder, RelationalEncoder, RelationalLayer, attribute_orders


def test_orders_are_zero_then_sinusoids():
    table = attribute_orders(4, 6)
    assert not table[0].any()
    assert table.shape == (4, 6)
    for position in range(3):
        expected = [f(position * 10000 ** (-2 * i / 6)) for i in range(3) for f in (math.sin, math.cos)]
        assert table[position + 1].tolist() == pytest.approx(expected, abs=1e-6)


def test_an_odd_number_of_channels():
    table = attribute_orders(3, 5)
    assert table.shape == (3, 5) and table[2, 4] == pytest.approx(math.sin(10000 ** (-4 / 5)))


def test_a_layer_hears_neighbours_by_type():
    torch.manual_seed(0)
    layer = RelationalLayer(3, 4, 2).double()
    nodes, edges = torch.randn(5, 3).double(), torch.rand(2, 2, 4, 4).double()
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    edges = edges * mask[:, None, None] * mask[:, None, :, None]
    heard = layer(nodes, edges, rows_of(mask))
    start = 0
    for sample, count in enumerate((3, 2)):
        own = nodes[start : start + count]
        expected = own @ layer.loop_weight
        for kind in range(2):
            expected = expected + edges[sample, kind, :count, :count] @ own @ layer.weight[kind]
        torch.testing.assert_close(heard[start : start + count], expected.relu())
        start += count


@pytest.mark.parametrize("embed_first", [True, False])
def test_relational_encoder_keeps_published_names(embed_first, scene_graphs):
    encoder = RelationalEncoder(6, 4, 3, 6, 2, embed_first)
    shapes = {name: tuple(values.shape) for name, values in encoder.state_dict().items()}
    expected = {"node_embedding.weight": (3, 6), "attr_order_embeds": (20, 6)}
    expected |= {"first_embedding.0.weight": (4, 6), "first_embedding.0.bias": (4,)} if embed_first else {}
    for layer, channels in enumerate((4 if embed_first else 6, 4)):
        expected |= {f"layers.{layer}.loop_weight": (channels, 4), f"layers.{layer}.weight": (6, channels, 4)}
    assert shapes == expected
    graph = scene_graphs()
    assert encoder(graph, rows_of(graph["attn_masks"])).shape == (9, 4)


def test_roles_multiply_features(scene_graphs):
    graph = scene_graphs()
    encoder = NodeEncoder(6, 4, 3, roles=True)
    codes = encoder(graph, rows_of(graph["attn_masks"]))
    role = encoder.node_embedding.weight[1] + attribute_orders(20, 6)[1]  # node 1 of each chain is a first attribute
    torch.testing.assert_close(codes[1], encoder.ft_embed(graph["attn_fts"][0, 1] * role))
    role = encoder.node_embedding.weight[2]
    torch.testing.assert_close(codes[7], encoder.ft_embed(graph["attn_fts"][1, 2] * role))
