"""Small networks with declared sites, whose attention is computed in every way that networks compute it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_xai.explain.streams import FeatureLevels, ObjectQueries, Patches, Site, Stream

GRID = (2, 4)


class Attention(nn.Module):
    """Multi-head attention. route: "sdpa", "softmax", "flat softmax", or "kept", which leaves A in `kept`."""

    def __init__(self, width: int = 16, heads: int = 2):
        super().__init__()
        self.num_heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.route = "sdpa"
        self.kept = None

    def forward(self, x, y, value=None, padding=None):
        projected = (self.q(x), self.k(y), self.v(y if value is None else value))
        q, k, v = (each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in projected)
        visible = None if padding is None else ~padding[:, None, None]
        if self.route == "sdpa":
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        else:
            logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            if visible is not None:
                logits = logits.masked_fill(~visible, -torch.inf)
            if self.route == "softmax":
                mixed = logits.softmax(dim=-1) @ v
            elif self.route == "flat softmax":
                mixed = (F.softmax(logits.flatten(0, 1), -1) @ v.flatten(0, 1)).unflatten(0, (-1, self.num_heads))
            else:
                self.kept = logits.exp() / logits.exp().sum(-1, keepdim=True)
                mixed = self.kept @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Small(nn.Module):
    """What the small networks share: random weights that keep attention from being uniform, and the route."""

    def draw(self):
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)
        return self.double().eval()

    def attentions(self):
        return [self.get_submodule(site.module) for site in self.sites()]

    def by(self, route):
        for attention in self.attentions():
            attention.route = route
        return self


class Classifier(Small):
    """Token 0 is the class token; two layers of self-attention, then logits (B, 5)."""

    def __init__(self, layers: int = 2, width: int = 16):
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.layers = nn.ModuleList(Attention(width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.head = nn.Linear(width, 5)
        self.checkpointed = False
        self.draw()

    def forward(self, tokens):
        tokens = self.stem(tokens)
        for attention, norm in zip(self.layers, self.norms, strict=True):
            normed = norm(tokens)
            if self.checkpointed:
                attended = torch.utils.checkpoint.checkpoint(attention, normed, normed, use_reentrant=False)
            else:
                attended = attention(normed, normed)
            tokens = tokens + attended
        return self.head(tokens[:, 0])

    def sites(self):
        return [Site(f"layers.{i}", "dense", "image", "image", "encoder", i) for i in range(len(self.layers))]

    def streams(self, outputs):
        return {"image": Stream("image", Patches(GRID, prefix=1))}


class EncoderDecoder(Small):
    """A detector in small: encoder, queries that start at zero and have a position, logits (B, Q, 4)."""

    def __init__(self, layers: int = 2, width: int = 16, queries: int = 5):
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.encoder, self.self_attn, self.cross_attn = (
            nn.ModuleList(Attention(width) for _ in range(layers)) for _ in range(3)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 * layers))
        self.query_embed = nn.Parameter(torch.empty(queries, width))
        self.head = nn.Linear(width, 4)
        self.draw()

    def forward(self, tokens, padding=None):
        norms = iter(self.norms)
        tokens = self.stem(tokens)
        for attention in self.encoder:
            tokens = next(norms)(tokens + attention(tokens, tokens, padding=padding))
        content = self.query_embed.new_zeros(len(tokens), *self.query_embed.shape)
        for own, cross in zip(self.self_attn, self.cross_attn, strict=True):
            located = content + self.query_embed
            content = next(norms)(content + own(located, located, content))
            content = next(norms)(content + cross(content + self.query_embed, tokens, padding=padding))
        return {"pred_logits": self.head(content)}

    def sites(self):
        count = range(len(self.encoder))
        sites = [Site(f"encoder.{i}", "dense", "image", "image", "encoder", i) for i in count]
        for i in count:
            sites.append(Site(f"self_attn.{i}", "dense", "query", "query", "decoder", i))
            sites.append(Site(f"cross_attn.{i}", "dense", "query", "image", "decoder", i))
        return sites

    def streams(self, outputs):
        queries = ObjectQueries(outputs["pred_logits"].shape[1])
        return {"image": Stream("image", FeatureLevels((GRID,))), "query": Stream("query", queries)}


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return Classifier()


@pytest.fixture
def encoder_decoder():
    torch.manual_seed(0)
    return EncoderDecoder()


@pytest.fixture
def image_tokens():
    """Class token and eight patches of three samples: (3, 9, 16)."""
    return torch.randn(3, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def map_tokens():
    """Eight cells of three samples: (3, 8, 16)."""
    return torch.randn(3, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
