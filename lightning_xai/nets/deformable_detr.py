"""Deformable DETR, all published variants (Zhu et al., ICLR 2021, arXiv 2010.04159).

Letters: B images, L feature levels, S = sum of h*w tokens over the levels, C channels, H heads, P points, Q object
queries, K classes. Coordinates are (x, y); boxes are (cx, cy, w, h) in [0, 1] of the unpadded image; a mask is True on
padding. Parameters have the names of the original repository's checkpoints.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from ms_deform_attn import MSDeformAttn
from torch import Tensor, nn

from lightning_xai.explain.streams import Site, Stream
from lightning_xai.nets.backbones import build_backbone
from lightning_xai.nets.detector_sites import detector_sites, detector_streams

NORM_GROUPS = 32
LEARNED_CELLS = 50


class Pyramid(NamedTuple):
    """How the tokens of all levels lie in the padded images, level after level, row by row.

    shapes: the (h, w) of each level, on the CPU. padding: (B, S). valid_ratios: (B, L, 2), the share (x, y) of each
    level's map that is image. centres: (B, S, 2), of the tokens' cells in the unpadded image. sizes: h * w a level.
    """

    shapes: Tensor
    padding: Tensor
    valid_ratios: Tensor
    centres: Tensor
    sizes: list[int]


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """mask (B, H, W) to (B, h, w) by nearest neighbour."""
    return F.interpolate(mask[:, None].float(), size=tuple(size))[:, 0] > 0


def lay_out(masks: Sequence[Tensor]) -> Pyramid:
    """The layout of levels with these padding masks (B, h, w); an image fills the upper left of its padded map."""
    ratios, centres = [], []
    for mask in masks:
        h, w = mask.shape[1:]
        valid = (~mask).float()
        ratio = torch.stack([valid[:, 0].mean(1), valid[:, :, 0].mean(1)], -1)  # (B, 2)
        y = (torch.arange(h, dtype=ratio.dtype, device=mask.device) + 0.5) / h
        x = (torch.arange(w, dtype=ratio.dtype, device=mask.device) + 0.5) / w
        grid = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1).flatten(0, 1)
        ratios.append(ratio)
        centres.append(grid / ratio[:, None])
    return Pyramid(
        shapes=torch.tensor([tuple(mask.shape[1:]) for mask in masks], device="cpu"),
        padding=torch.cat([mask.flatten(1) for mask in masks], 1),
        valid_ratios=torch.stack(ratios, 1),
        centres=torch.cat(centres, 1),
        sizes=[mask.shape[1] * mask.shape[2] for mask in masks],
    )


class SinePositionEncoding(nn.Module):
    """Sines and cosines of a cell's row and column, counted over unmasked cells and scaled to 2 pi (no parameters)."""

    def __init__(self, channels: int):
        super().__init__()
        self.features = channels // 2

    def forward(self, mask: Tensor) -> Tensor:
        """mask (B, h, w) -> (B, h, w, C), first half of the channels from y, second from x."""
        valid = ~mask
        y, x = valid.cumsum(1, dtype=torch.float32), valid.cumsum(2, dtype=torch.float32)
        y = (y - 0.5) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = (x - 0.5) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        return torch.cat([sine_features(y, self.features), sine_features(x, self.features)], -1)


class LearnedPositionEncoding(nn.Module):
    """One learned vector a row and a column, for maps of at most 50 x 50 cells."""

    def __init__(self, channels: int):
        super().__init__()
        self.row_embed = nn.Embedding(LEARNED_CELLS, channels // 2)
        self.col_embed = nn.Embedding(LEARNED_CELLS, channels // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, mask: Tensor) -> Tensor:
        """mask (B, h, w) -> (B, h, w, C), first half of the channels from x, second from y."""
        batch, h, w = mask.shape
        if max(h, w) > LEARNED_CELLS:
            raise ValueError(
                f"position_embedding 'learned' holds {LEARNED_CELLS} rows and columns, but a feature level has "
                f"{h} x {w}: use 'sine' or smaller images."
            )
        x = self.col_embed.weight[:w].expand(batch, h, w, -1)
        y = self.row_embed.weight[:h, None].expand(batch, h, w, -1)
        return torch.cat([x, y], -1)


def sine_features(angle: Tensor, features: int) -> Tensor:
    """angle (...) -> (..., features): sin and cos alternate, of angle / 10000^(2i / features)."""
    frequencies = torch.arange(features // 2, dtype=torch.float32, device=angle.device)
    angles = angle[..., None] / 10000 ** (2 * frequencies / features)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)), with x and 1 - x kept above eps."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, num_layers: int):
        super().__init__()
        widths = [in_channels] + [hidden_channels] * (num_layers - 1) + [out_channels]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class EncoderLayer(nn.Module):
    """Deformable self-attention over all levels, then a feed-forward net; normalised after each sum."""

    def __init__(self, channels: int, levels: int, heads: int, points: int, feedforward: int, dropout: float):
        super().__init__()
        self.self_attn = MSDeformAttn(channels, levels, heads, points)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, pyramid: Pyramid) -> Tensor:
        attended = self.self_attn(tokens + position, reference, tokens, pyramid.shapes, pyramid.padding)
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(tokens)))
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))


class DecoderLayer(nn.Module):
    """Self-attention of the queries (norm2), deformable attention to the image (norm1), feed-forward net (norm3)."""

    def __init__(self, channels: int, levels: int, heads: int, points: int, feedforward: int, dropout: float):
        super().__init__()
        self.cross_attn = MSDeformAttn(channels, levels, heads, points)
        self.norm1 = nn.LayerNorm(channels)
        self.self_attn = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm3 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, content: Tensor, position: Tensor, reference: Tensor, memory: Tensor, pyramid: Pyramid) -> Tensor:
        located = content + position
        attended, _ = self.self_attn(located, located, content, need_weights=False)
        content = self.norm2(content + self.dropout(attended))
        attended = self.cross_attn(content + position, reference, memory, pyramid.shapes, pyramid.padding)
        content = self.norm1(content + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(content)))
        return self.norm3(content + self.dropout(self.linear2(hidden)))


class Encoder(nn.Module):
    """The tokens of all levels look at each other."""

    def __init__(self, layers: nn.ModuleList):
        super().__init__()
        self.layers = layers

    def forward(self, tokens: Tensor, position: Tensor, pyramid: Pyramid) -> Tensor:
        """tokens, position (B, S, C) -> memory (B, S, C)."""
        reference = pyramid.centres[:, :, None] * pyramid.valid_ratios[:, None]  # (B, S, L, 2), of each padded map
        for layer in self.layers:
            tokens = layer(tokens, position, reference, pyramid)
        return tokens


class Decoder(nn.Module):
    """The object queries look at each other and at the image; each layer's boxes may guide the next layer."""

    def __init__(self, layers: nn.ModuleList):
        super().__init__()
        self.layers = layers

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        pyramid: Pyramid,
        box_heads: nn.ModuleList,
        refine: bool,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """content, position (B, Q, C), reference (B, Q, 2 or 4) -> what each layer says.

        Returns the layers' contents (B, Q, C), their boxes (B, Q, 4), and the references (B, Q, 2 or 4) before the
        first and after each layer. refine: a layer's box is the next layer's reference.
        """
        contents, boxes, references = [], [], [reference]
        for layer, box_head in zip(self.layers, box_heads, strict=False):
            scale = pyramid.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)  # to each level's padded map
            content = layer(content, position, reference[:, :, None] * scale[:, None], memory, pyramid)
            box = move_box(box_head(content), reference)
            if refine:
                reference = box.detach()
            contents.append(content)
            boxes.append(box)
            references.append(reference)
        return contents, boxes, references


class Transformer(nn.Module):
    """Encoder, decoder and what lies between them: where the queries start."""

    def __init__(self, channels: int, num_levels: int, encoder: Encoder, decoder: Decoder, two_stage: bool):
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(num_levels, channels))
        self.encoder = encoder
        self.decoder = decoder
        if two_stage:
            self.enc_output = nn.Linear(channels, channels)
            self.enc_output_norm = nn.LayerNorm(channels)
            self.pos_trans = nn.Linear(2 * channels, 2 * channels)
            self.pos_trans_norm = nn.LayerNorm(2 * channels)
        else:
            self.reference_points = nn.Linear(channels, 2)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        if not two_stage:
            nn.init.zeros_(self.reference_points.bias)
        nn.init.normal_(self.level_embed)

    def learned_start(self, query_embed: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """query_embed (Q, 2C) -> content and position (B, Q, C) and reference (B, Q, 2)."""
        position, content = query_embed.expand(batch, -1, -1).chunk(2, -1)
        dtype = torch.promote_types(position.dtype, torch.float32)  # coordinates never in half precision
        return content, position, self.reference_points(position).to(dtype).sigmoid()

    def propose(
        self, memory: Tensor, pyramid: Pyramid, class_head: nn.Module, box_head: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """Every token of memory (B, S, C) proposes a box of about 0.05 * 2^level around itself.

        Returns class logits (B, S, K) and box logits (B, S, 4), +inf for padding and boxes too near to the border.
        """
        centres = pyramid.centres
        extents = torch.cat([centres.new_full((size, 2), 0.05 * 2**level) for level, size in enumerate(pyramid.sizes)])
        anchors = torch.cat([centres, extents.expand_as(centres)], -1)
        refused = pyramid.padding[..., None] | ~((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True)
        anchors = (anchors / (1 - anchors)).log().masked_fill(refused, torch.inf)
        features = self.enc_output_norm(self.enc_output(memory.masked_fill(refused, 0.0)))
        return class_head(features), box_head(features).to(anchors.dtype) + anchors

    def proposed_start(self, logits: Tensor, box_logits: Tensor, num_queries: int) -> tuple[Tensor, Tensor, Tensor]:
        """The queries start at the tokens with the largest logit of class 0, which the loss trains to mean any object.

        logits (B, S, K), box_logits (B, S, 4) -> content and position (B, Q, C) and reference (B, Q, 4).
        """
        tokens = logits.shape[1]
        if num_queries > tokens:
            raise ValueError(
                f"num_queries={num_queries} with two_stage=True needs as many tokens, but these images give {tokens}: "
                "use larger images or fewer queries."
            )
        top = logits[..., 0].topk(num_queries, 1).indices
        box_logits = box_logits.gather(1, top[..., None].expand(-1, -1, 4)).detach()
        reference = box_logits.sigmoid()
        features = self.pos_trans.in_features // 4
        embed = sine_features(reference * (2 * math.pi), features).flatten(2).to(self.pos_trans.weight.dtype)
        position, content = self.pos_trans_norm(self.pos_trans(embed)).chunk(2, -1)
        return content, position, reference


def move_box(delta: Tensor, reference: Tensor) -> Tensor:
    """sigmoid(delta + inverse_sigmoid(reference)) of delta (B, Q, 4); a reference (B, Q, 2) moves the centre only."""
    delta, start = delta.to(reference.dtype), inverse_sigmoid(reference)
    if reference.shape[-1] == 2:
        start = F.pad(start, (0, 2))
    return (delta + start).sigmoid()


class DeformableDETR(nn.Module):
    """The detector: a backbone's maps, deformable attention over all of them, one box and K scores from each query.

    num_classes: K, largest label + 1 (there is no background class). backbone, backbone_args, dilation, out_strides and
    backbone_weights: see `build_backbone`; levels beyond the backbone's maps are added by stride-2 convolutions.
    position_embedding: "sine" or "learned". encoder_points, decoder_points: P. with_box_refine: each layer's boxes are
    the next layer's references. two_stage: the encoder's best tokens start the queries; needs with_box_refine.
    aux_loss: also report what the decoder's earlier layers say. Raises ValueError where arguments do not go together.
    """

    class_scores = "sigmoid"

    def __init__(
        self,
        num_classes: int = 91,
        backbone: str = "resnet50",
        dilation: bool = False,
        position_embedding: str = "sine",
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_feature_levels: int = 4,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 1024,
        dropout: float = 0.1,
        encoder_points: int = 4,
        decoder_points: int = 4,
        num_queries: int = 300,
        with_box_refine: bool = False,
        two_stage: bool = False,
        aux_loss: bool = True,
        freeze_backbone: bool = False,
        backbone_weights: str | None = None,
        backbone_args: dict[str, Any] | None = None,
        out_strides: list[int] | None = None,
    ):
        super().__init__()
        counts = {
            "num_classes": num_classes,
            "num_heads": num_heads,
            "num_feature_levels": num_feature_levels,
            "num_decoder_layers": num_decoder_layers,
            "num_queries": num_queries,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name}={count} must be at least 1.")
        if hidden_dim % NORM_GROUPS or hidden_dim % num_heads:
            raise ValueError(
                f"hidden_dim={hidden_dim} must be a multiple of {NORM_GROUPS} (groups of the normalisation) "
                f"and of num_heads={num_heads}."
            )
        if two_stage and not with_box_refine:
            raise ValueError(
                "two_stage=True needs with_box_refine=True: the proposals are boxes that the decoder refines."
            )
        if position_embedding not in ("sine", "learned"):
            raise ValueError(f"position_embedding '{position_embedding}' must be 'sine' or 'learned'.")
        if out_strides is not None and len(out_strides) > num_feature_levels:
            raise ValueError(f"out_strides {list(out_strides)} are more than num_feature_levels={num_feature_levels}.")

        self.num_queries = num_queries
        self.with_box_refine = with_box_refine
        self.two_stage = two_stage
        self.aux_loss = aux_loss

        sizes = (hidden_dim, num_feature_levels, num_heads)
        encoder_layers = [
            EncoderLayer(*sizes, encoder_points, dim_feedforward, dropout) for _ in range(num_encoder_layers)
        ]
        decoder_layers = [
            DecoderLayer(*sizes, decoder_points, dim_feedforward, dropout) for _ in range(num_decoder_layers)
        ]
        self.transformer = Transformer(
            hidden_dim,
            num_feature_levels,
            Encoder(nn.ModuleList(encoder_layers)),
            Decoder(nn.ModuleList(decoder_layers)),
            two_stage,
        )

        class_head = nn.Linear(hidden_dim, num_classes)
        nn.init.constant_(class_head.bias, -math.log(99))  # every class starts at a score of 0.01
        box_head = MLP(hidden_dim, hidden_dim, 4, 3)
        nn.init.zeros_(box_head.layers[-1].weight)
        nn.init.zeros_(box_head.layers[-1].bias)
        if with_box_refine:
            heads = num_decoder_layers + two_stage  # the last pair scores the encoder's tokens
            self.class_embed = nn.ModuleList(copy.deepcopy(class_head) for _ in range(heads))
            self.bbox_embed = nn.ModuleList(copy.deepcopy(box_head) for _ in range(heads))
            self.transformer.decoder.bbox_embed = self.bbox_embed
        else:
            self.class_embed = nn.ModuleList([class_head] * num_decoder_layers)
            self.bbox_embed = nn.ModuleList([box_head] * num_decoder_layers)
        if two_stage:
            self.transformer.decoder.class_embed = self.class_embed
        else:
            nn.init.constant_(self.bbox_embed[0].layers[-1].bias[2:], -2.0)  # first boxes are small
            self.query_embed = nn.Embedding(num_queries, 2 * hidden_dim)

        body = build_backbone(
            backbone, backbone_args, dilation, min(num_feature_levels, 3), out_strides, backbone_weights
        )
        if freeze_backbone:
            body.requires_grad_(False)
        position = SinePositionEncoding if position_embedding == "sine" else LearnedPositionEncoding
        projections = [nn.Conv2d(c, hidden_dim, 1) for c in body.channels]
        channels = body.channels[-1]
        for _ in range(num_feature_levels - len(projections)):
            projections.append(nn.Conv2d(channels, hidden_dim, 3, stride=2, padding=1))
            channels = hidden_dim
        for projection in projections:
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        self.input_proj = nn.ModuleList(nn.Sequential(p, nn.GroupNorm(NORM_GROUPS, hidden_dim)) for p in projections)
        self.backbone = nn.ModuleList([body, position(hidden_dim)])

    def forward(self, images: Tensor, mask: Tensor) -> dict:
        """images (B, 3, h, w) normalised, mask (B, h, w) True on padding -> what the detector says.

        pred_logits (B, Q, K), pred_boxes (B, Q, 4); aux_outputs: the same two of each earlier decoder layer (with
        aux_loss); enc_outputs: the same two of every token (two-stage); reference_points: (B, Q, 2 or 4) before the
        first and after each decoder layer; spatial_shapes (L, 2) int64 (h, w), on the CPU; valid_ratios (B, L, 2).
        """
        features = self.feature_levels(images)
        masks = [resize_mask(mask, feature.shape[2:]) for feature in features]
        pyramid = lay_out(masks)
        tokens = torch.cat([feature.flatten(2).transpose(1, 2) for feature in features], 1)
        positions = [
            (self.backbone[1](m).to(tokens.dtype) + embed).flatten(1, 2)
            for m, embed in zip(masks, self.transformer.level_embed, strict=True)
        ]

        memory = self.transformer.encoder(tokens, torch.cat(positions, 1), pyramid)

        outputs = {}
        if self.two_stage:
            logits, box_logits = self.transformer.propose(memory, pyramid, self.class_embed[-1], self.bbox_embed[-1])
            outputs["enc_outputs"] = {"pred_logits": logits, "pred_boxes": box_logits.sigmoid()}
            start = self.transformer.proposed_start(logits, box_logits, self.num_queries)
        else:
            start = self.transformer.learned_start(self.query_embed.weight, len(images))
        contents, boxes, references = self.transformer.decoder(
            *start, memory, pyramid, self.bbox_embed, self.with_box_refine
        )

        first = 0 if self.aux_loss else len(contents) - 1
        layers = [
            {"pred_logits": head(content), "pred_boxes": box}
            for head, content, box in list(zip(self.class_embed, contents, boxes, strict=False))[first:]
        ]
        outputs |= layers[-1]
        if self.aux_loss:
            outputs["aux_outputs"] = layers[:-1]
        outputs |= {"reference_points": references}
        return outputs | {"spatial_shapes": pyramid.shapes, "valid_ratios": pyramid.valid_ratios}

    def feature_levels(self, images: Tensor) -> list[Tensor]:
        """The L feature levels (B, C, h, w): the backbone's maps projected, then coarser ones made of the last map."""
        maps = self.backbone[0](images)
        levels = [project(m) for project, m in zip(self.input_proj, maps, strict=False)]
        coarsest = maps[-1]
        for project in self.input_proj[len(maps) :]:
            coarsest = project(coarsest)
            levels.append(coarsest)
        return levels

    def sites(self) -> list[Site]:
        """Every attention of the network, in order of execution."""
        return detector_sites(self.transformer, "deformable", cross="cross_attn")

    def streams(self, outputs: Mapping) -> dict[str, Stream]:
        """Where the tokens of a forward pass lie, from its outputs."""
        return detector_streams(outputs)
