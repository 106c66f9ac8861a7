"""Where detection transformers attend, and where their tokens lie: the same for DETR and Deformable DETR."""

from collections.abc import Mapping
from typing import Literal

from torch import nn

from lightning_xai.explain.streams import FeatureLevels, ObjectQueries, Site, Stream


def detector_sites(transformer: nn.Module, kind: Literal["dense", "deformable"], cross: str) -> list[Site]:
    """Every attention of a network's `transformer`, in order of execution.

    kind: of the attention that reads the image; queries always read each other densely. cross: the module of a decoder
    layer by which queries read the image.
    """
    encoder, decoder = (f"transformer.{part}.layers" for part in ("encoder", "decoder"))
    sites = [
        Site(f"{encoder}.{i}.self_attn", kind, writes="image", reads="image", part="encoder", layer=i)
        for i in range(len(transformer.encoder.layers))
    ]
    for i in range(len(transformer.decoder.layers)):
        sites += [
            Site(f"{decoder}.{i}.self_attn", "dense", writes="query", reads="query", part="decoder", layer=i),
            Site(f"{decoder}.{i}.{cross}", kind, writes="query", reads="image", part="decoder", layer=i),
        ]
    return sites


def detector_streams(outputs: Mapping) -> dict[str, Stream]:
    """Where the tokens of a forward pass lie, from its outputs spatial_shapes, valid_ratios and pred_logits."""
    shapes = tuple((h, w) for h, w in outputs["spatial_shapes"].tolist())
    return {
        "image": Stream("image", FeatureLevels(shapes, outputs["valid_ratios"])),
        "query": Stream("query", ObjectQueries(outputs["pred_logits"].shape[1])),
    }
