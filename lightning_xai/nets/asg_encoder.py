"""Encoders of abstract scene graphs: one code a node, from its region's feature, its role and its neighbours.

Letters: B graphs, N nodes (padded), R rows: the nodes that are worked on, E types of edges, C channels.
Source: Chen et al., Say As You Wish: Fine-grained Control of Image Caption Generation with Abstract Scene Graphs, CVPR
2020, arXiv 2003.00387.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_xai.nets.asg_decoder import Rows, layer_map
from lightning_xai.nets.packed_linear import linear_map

# Orders of a node within its object: 0 for what is no attribute, then up to 19 attributes.
ORDERS = 20


class NodeEncoder(nn.Module):
    """Each node alone: a linear map of its region's feature, which its role may have changed first.

    roles: multiply the feature by an embedding of the node's role, see `in_their_roles`.
    """

    def __init__(self, feature_dim: int, hidden_dim: int, num_node_types: int, roles: bool):
        super().__init__()
        self.ft_embed = nn.Linear(feature_dim, hidden_dim)
        if roles:
            add_roles(self, feature_dim, num_node_types)
        self.roles = roles

    def forward(self, graph: Mapping[str, Tensor], rows: Rows) -> Tensor:
        """attn_fts (B, N, feature_dim) -> codes (R, C)."""
        return layer_map(self.ft_embed)(in_their_roles(self, graph, rows) if self.roles else rows.of(graph["attn_fts"]))


class RelationalEncoder(nn.Module):
    """Nodes in their roles exchange messages along typed edges, layer after layer.

    embed_first: map the features to the hidden size before the first layer instead of in it.
    """

    def __init__(
        self,
        feature_dim: int,
        hidden_dim: int,
        num_node_types: int,
        num_relations: int,
        num_layers: int,
        embed_first: bool,
    ):
        super().__init__()
        add_roles(self, feature_dim, num_node_types)
        self.first_embedding = nn.Sequential(nn.Linear(feature_dim, hidden_dim), nn.ReLU()) if embed_first else None
        sizes = [hidden_dim if embed_first else feature_dim] + [hidden_dim] * num_layers
        self.layers = nn.ModuleList(RelationalLayer(*pair, num_relations) for pair in pairwise(sizes))

    def forward(self, graph: Mapping[str, Tensor], rows: Rows) -> Tensor:
        """attn_fts (B, N, feature_dim), rel_edges (B, E, N, N) -> codes (R, C)."""
        nodes = in_their_roles(self, graph, rows)
        if self.first_embedding is not None:
            nodes = layer_map(self.first_embedding[0])(nodes).relu()
        for layer in self.layers:
            nodes = layer(nodes, graph["rel_edges"], rows)
        return nodes


class RelationalLayer(nn.Module):
    """A relational graph convolution: relu(x W_loop + sum_r A_r x W_r).

    Source: Schlichtkrull et al., Modeling Relational Data with Graph Convolutional Networks, equation 2.
    """

    def __init__(self, channels: int, out_channels: int, num_relations: int):
        super().__init__()
        self.loop_weight = nn.Parameter(torch.empty(channels, out_channels))
        self.weight = nn.Parameter(torch.empty(num_relations, channels, out_channels))
        for weight in (self.loop_weight, self.weight):
            # of the three axes of `weight` the published code counts the last as a kernel's; so it starts out small
            nn.init.xavier_uniform_(weight, gain=nn.init.calculate_gain("relu"))

    def forward(self, nodes: Tensor, edges: Tensor, rows: Rows) -> Tensor:
        """nodes (R, C), edges (B, E, target, source) with 1 / in-degree of the target by this type -> (R, C')."""
        heard = edges.to(nodes.dtype).flatten(1, 2) @ rows.padded(nodes)  # (B, E * N, C)
        heard = heard.unflatten(1, edges.shape[1:3]).transpose(1, 2).flatten(2)  # (B, N, E * C)
        weight = torch.cat([self.loop_weight, self.weight.flatten(0, 1)])  # ((1 + E) * C, C')
        return linear_map(weight.T)(torch.cat([nodes, rows.of(heard)], 1)).relu()


def add_roles(encoder: nn.Module, feature_dim: int, num_node_types: int) -> None:
    """Give an encoder what `in_their_roles` reads, by the published names."""
    encoder.node_embedding = nn.Embedding(num_node_types, feature_dim)
    encoder.register_buffer("attr_order_embeds", attribute_orders(ORDERS, feature_dim))


def in_their_roles(encoder: nn.Module, graph: Mapping[str, Tensor], rows: Rows) -> Tensor:
    """Features times (embedding of the node's type + row of its order): (R, feature_dim)."""
    features, types, orders = (rows.of(graph[name]) for name in ("attn_fts", "node_types", "attr_order_idxs"))
    return features * (encoder.node_embedding(types) + encoder.attr_order_embeds[orders])


def attribute_orders(orders: int, channels: int) -> Tensor:
    """Fixed rows (orders, channels): zeros for what is no attribute, row k + 1 the sinusoid of position k.

    sin(k w_i) in even columns, cos(k w_i) in odd ones, w_i = 10000^(-2 i / channels).
    """
    position = torch.arange(orders - 1, dtype=torch.float64)[:, None]
    angles = position * torch.exp(torch.arange(0, channels, 2, dtype=torch.float64) * (-math.log(10000.0) / channels))
    table = torch.zeros(orders, channels, dtype=torch.float64)
    table[1:, 0::2] = angles.sin()
    table[1:, 1::2] = angles.cos()[:, : channels // 2]
    return table.float()
