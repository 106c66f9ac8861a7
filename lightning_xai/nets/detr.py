"""DETR: detection as a set, by dense attention over one feature map (Carion et al., ECCV 2020, arXiv 2005.12872).

Letters: B images, N = h * w tokens of the map, C channels, H heads, Q object queries, K classes, A decoder layers.
Boxes are (cx, cy, w, h) in [0, 1] of the unpadded image; a mask is True on padding. Parameters have the names of the
original repository's checkpoints.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_xai.explain.streams import Site, Stream
from lightning_xai.nets.backbones import build_backbone
from lightning_xai.nets.deformable_detr import MLP, LearnedPositionEncoding, resize_mask, sine_features
from lightning_xai.nets.detector_sites import detector_sites, detector_streams


class SinePositionEncoding(nn.Module):
    """Sines and cosines of a cell's row and column, counted from 1 over unmasked cells and scaled to 2 pi."""

    def __init__(self, channels: int):
        super().__init__()
        self.features = channels // 2

    def forward(self, mask: Tensor) -> Tensor:
        """mask (B, h, w) -> (B, h, w, C), first half of the channels from y, second from x."""
        valid = ~mask
        y, x = valid.cumsum(1, dtype=torch.float32), valid.cumsum(2, dtype=torch.float32)
        y = y / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = x / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        return torch.cat([sine_features(y, self.features), sine_features(x, self.features)], -1)


class EncoderLayer(nn.Module):
    """Self-attention of the image's tokens, then a feed-forward net; normalised after each sum."""

    def __init__(self, channels: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        located = tokens + position
        attended, _ = self.self_attn(located, located, tokens, key_padding_mask=padding, need_weights=False)
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(tokens)))
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))


class DecoderLayer(nn.Module):
    """Self-attention of the queries (norm1), attention to the image (norm2), feed-forward net (norm3)."""

    def __init__(self, channels: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(channels)
        self.multihead_attn = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm3 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, content: Tensor, query: Tensor, memory: Tensor, located_memory: Tensor, padding: Tensor | None
    ) -> Tensor:
        located = content + query
        attended, _ = self.self_attn(located, located, content, need_weights=False)
        content = self.norm1(content + self.dropout(attended))
        attended, _ = self.multihead_attn(
            content + query, located_memory, memory, key_padding_mask=padding, need_weights=False
        )
        content = self.norm2(content + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(content)))
        return self.norm3(content + self.dropout(self.linear2(hidden)))


class Encoder(nn.Module):
    """The tokens of the map look at each other."""

    def __init__(self, layers: nn.ModuleList):
        super().__init__()
        self.layers = layers

    def forward(self, tokens: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """tokens, position (B, N, C), padding (B, N) -> memory (B, N, C)."""
        for layer in self.layers:
            tokens = layer(tokens, position, padding)
        return tokens


class Decoder(nn.Module):
    """The object queries look at each other and at the image, starting from nothing but their embedding."""

    def __init__(self, layers: nn.ModuleList, channels: int):
        super().__init__()
        self.layers = layers
        self.norm = nn.LayerNorm(channels)

    def forward(self, query: Tensor, memory: Tensor, position: Tensor, padding: Tensor | None) -> list[Tensor]:
        """query (B, Q, C), memory and position (B, N, C) -> the normalised contents (B, Q, C) after each layer."""
        content, contents = torch.zeros_like(query), []
        located_memory = memory + position
        for layer in self.layers:
            content = layer(content, query, memory, located_memory, padding)
            contents.append(self.norm(content))
        return contents


class Transformer(nn.Module):
    """Encoder and decoder."""

    def __init__(self, encoder: Encoder, decoder: Decoder):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, tokens: Tensor, position: Tensor, query_embed: Tensor, padding: Tensor | None) -> list[Tensor]:
        """tokens, position (B, N, C), query_embed (Q, C) -> the queries' contents (B, Q, C) after each decoder layer.

        padding: (B, N), True for tokens that nobody may attend to. None lets padding be seen, as in the reference of
        the explanation methods (Chefer et al. 2021), whose attention knows no mask.
        """
        memory = self.encoder(tokens, position, padding)
        return self.decoder(query_embed.expand(len(tokens), -1, -1), memory, position, padding)


class DETR(nn.Module):
    """The detector: a backbone's last map, an encoder, a decoder, one box and K + 1 class scores from each query.

    num_classes: K, largest label + 1; a softmax over K + 1 logits tells the class, the last one means no object.
    backbone, backbone_args, dilation (DC5) and backbone_weights: see `build_backbone`. position_embedding: "sine" or
    "learned". aux_loss: also report what the decoder's earlier layers say. ValueError: arguments do not go together.
    """

    class_scores = "softmax"

    def __init__(
        self,
        num_classes: int = 91,
        backbone: str = "resnet50",
        dilation: bool = False,
        position_embedding: str = "sine",
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        num_queries: int = 100,
        aux_loss: bool = True,
        freeze_backbone: bool = False,
        backbone_weights: str | None = None,
        backbone_args: dict[str, Any] | None = None,
    ):
        super().__init__()
        counts = {
            "num_classes": num_classes,
            "num_heads": num_heads,
            "num_decoder_layers": num_decoder_layers,
            "num_queries": num_queries,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name}={count} must be at least 1.")
        if hidden_dim % 4 or hidden_dim % num_heads:
            raise ValueError(
                f"hidden_dim={hidden_dim} must be a multiple of 4 (sine and cosine of row and column) and of "
                f"num_heads={num_heads}."
            )
        if position_embedding not in ("sine", "learned"):
            raise ValueError(f"position_embedding '{position_embedding}' must be 'sine' or 'learned'.")

        self.num_queries = num_queries
        self.aux_loss = aux_loss

        sizes = (hidden_dim, num_heads, dim_feedforward, dropout)
        encoder_layers = nn.ModuleList(EncoderLayer(*sizes) for _ in range(num_encoder_layers))
        decoder_layers = nn.ModuleList(DecoderLayer(*sizes) for _ in range(num_decoder_layers))
        self.transformer = Transformer(Encoder(encoder_layers), Decoder(decoder_layers, hidden_dim))

        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, 3)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)

        body = build_backbone(backbone, backbone_args, dilation, num_maps=1, weights=backbone_weights)
        if freeze_backbone:
            body.requires_grad_(False)
        position = SinePositionEncoding if position_embedding == "sine" else LearnedPositionEncoding
        self.input_proj = nn.Conv2d(body.channels[-1], hidden_dim, 1)
        self.backbone = nn.ModuleList([body, position(hidden_dim)])

    def forward(self, images: Tensor, mask: Tensor) -> dict:
        """images (B, 3, height, width) normalised, mask (B, height, width) True on padding -> what the detector says.

        pred_logits (B, Q, K + 1), pred_boxes (B, Q, 4); aux_outputs: the same two of each earlier decoder layer (with
        aux_loss); spatial_shapes (1, 2) int64 (h, w), on the CPU; valid_ratios (B, 1, 2), the share (x, y) of the map
        that is image.
        """
        features = self.input_proj(self.backbone[0](images)[-1])  # (B, C, h, w)
        mask = resize_mask(mask, features.shape[2:])
        position = self.backbone[1](mask).to(features.dtype)
        contents = self.transformer(
            features.flatten(2).transpose(1, 2), position.flatten(1, 2), self.query_embed.weight, mask.flatten(1)
        )
        valid = (~mask).to(position.dtype)
        return self.report(contents) | {
            "spatial_shapes": torch.tensor([tuple(features.shape[2:])], device="cpu"),
            "valid_ratios": torch.stack([valid[:, 0].mean(1), valid[:, :, 0].mean(1)], -1)[:, None],
        }

    def report(self, contents: list[Tensor]) -> dict:
        """Class logits and boxes from the queries' contents (B, Q, C) after each decoder layer."""
        first = 0 if self.aux_loss else len(contents) - 1
        layers = [
            {"pred_logits": self.class_embed(content), "pred_boxes": to_box(self.bbox_embed(content))}
            for content in contents[first:]
        ]
        return layers[-1] | ({"aux_outputs": layers[:-1]} if self.aux_loss else {})

    def sites(self) -> list[Site]:
        """Every attention of the network, in order of execution."""
        return detector_sites(self.transformer, "dense", cross="multihead_attn")

    def streams(self, outputs: Mapping) -> dict[str, Stream]:
        """Where the tokens of a forward pass lie, from its outputs."""
        return detector_streams(outputs)


def to_box(logits: Tensor) -> Tensor:
    """sigmoid, never in half precision: coordinates need more digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
