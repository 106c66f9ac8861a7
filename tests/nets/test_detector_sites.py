from types import SimpleNamespace

import torch

from lightning_xai.explain.streams import FeatureLevels, ObjectQueries
from lightning_xai.nets.detector_sites import detector_sites, detector_streams


def test_sites_in_order_of_execution():
    layers = [SimpleNamespace(layers=[None] * count) for count in (1, 2)]
    sites = detector_sites(SimpleNamespace(encoder=layers[0], decoder=layers[1]), "deformable", cross="cross_attn")
    assert [(site.module.removeprefix("transformer."), site.kind, site.writes, site.reads) for site in sites] == [
        ("encoder.layers.0.self_attn", "deformable", "image", "image"),
        ("decoder.layers.0.self_attn", "dense", "query", "query"),
        ("decoder.layers.0.cross_attn", "deformable", "query", "image"),
        ("decoder.layers.1.self_attn", "dense", "query", "query"),
        ("decoder.layers.1.cross_attn", "deformable", "query", "image"),
    ]


def test_streams_of_the_outputs():
    ratios = torch.ones(2, 2, 2)
    outputs = {"spatial_shapes": torch.tensor([[4, 6], [2, 3]]), "valid_ratios": ratios}
    streams = detector_streams(outputs | {"pred_logits": torch.zeros(2, 7, 3)})
    image, query = streams["image"].layout, streams["query"].layout
    assert isinstance(image, FeatureLevels) and image.shapes == ((4, 6), (2, 3)) and image.valid_ratios is ratios
    assert query == ObjectQueries(7)
