"""Masks made of relevance: known answers, padding, images of which nothing is explained."""

import math

import pytest
import torch
from pycocotools import mask as run_lengths
from torch import nn

from lightning_xai.evaluate.detection_ap import AP_NAMES
from lightning_xai.explain.explain_batch import explain_batch, methods_by_name
from lightning_xai.explain.explainable import Explained
from lightning_xai.explain.explanation import Explanation
from lightning_xai.explain.streams import FeatureLevels, Stream
from lightning_xai.explain.targets import Targets
from lightning_xai.nets.detr import DETR
from lightning_xai.tasks.detection import DetectionTask
from lightning_xai.tasks.relevance_segmentation import RelevanceSegmentation

SIZE, ORIGINAL = torch.tensor([32, 32]), torch.tensor([64, 64])


class Scored:
    """Stands for a task that keeps query 1 of the first image, for class 2, among three queries."""

    def class_probabilities(self, outputs):
        scores = torch.full((outputs["count"], 3, 4), 0.1)
        scores[0, 1, 2] = 0.9
        return scores


def expected_mask():
    """Cells 1 and 2 of 4, enlarged 8 times and half a cell wider on each side, at twice that size."""
    position = (torch.arange(32) + 0.5) / 8 - 0.5
    weighted = ((position[:, None] - torch.tensor([1.0, 2.0])).abs() < 1).any(1)
    return (weighted[:, None] & weighted).repeat_interleave(2, 0).repeat_interleave(2, 1)


def a_batch(count=1, true=None):
    true = expected_mask() if true is None else true
    targets = []
    for i in range(count):
        truth = {"masks": true[None], "labels": torch.tensor([2]), "iscrowd": torch.tensor([0])}
        truth["area"] = truth["masks"].sum((1, 2)).double()
        targets.append({"image_id": torch.tensor(10 + i), "size": SIZE, "orig_size": ORIGINAL, "ground_truth": truth})
    return {"targets": targets}


def measured(maps, ratios, batch, method="ours"):
    """The measure after one batch in which query 1 of the first image has these maps (1, h, w)."""
    measure, count = RelevanceSegmentation(), len(batch["targets"])
    measure.begin([method])
    outputs = {"count": count, "valid_ratios": torch.tensor(ratios).expand(count, 1, 2)}
    measure.see(Scored(), outputs, batch)
    if maps is not None:
        zero = torch.zeros(1, dtype=torch.int64)
        targets = Targets(torch.zeros(1), zero, {"query": zero + 1})
        stream = Stream("image", FeatureLevels((tuple(maps.shape[1:]),), outputs["valid_ratios"]))
        explanation = Explanation({"image": maps.flatten(1)}, {"image": stream}, zero, torch.zeros(1))
        measure.update(method, explanation, Explained(targets, ("query 1",), zero + 2), batch, None)
    return measure


def object_map(padding=0):
    maps = torch.zeros(1, 4, 4 + padding)
    maps[:, 1:3, 1:3] = 1
    maps[:, :, 4:] = 7
    return maps


def test_the_mask_is_otsus_and_grows_by_half_a_cell():
    row = measured(object_map(), [1.0, 1.0], a_batch()).compute()["ours"]
    assert (row["AP"], row["AR100"]) == pytest.approx((1.0, 1.0))
    assert tuple(row) == AP_NAMES and math.isnan(row["APs"])  # 56 x 56 pixels: no small object
    assert measured(object_map(), [1.0, 1.0], a_batch(true=~expected_mask())).compute()["ours"]["AR100"] == 0


def test_padding_takes_no_part():
    plain, padded = (
        measured(maps, ratios, a_batch())
        for maps, ratios in ((object_map(), [1.0, 1.0]), (object_map(2), [4 / 6, 1.0]))
    )
    assert plain.compute() == padded.compute()
    assert measured(object_map(2), [1.0, 1.0], a_batch()).compute() != plain.compute()


def test_images_of_which_nothing_is_explained_count():
    """Two images with an object each, a mask for the first one only: half of them is recalled."""
    assert measured(object_map(), [1.0, 1.0], a_batch(2)).compute()["ours"]["AR100"] == pytest.approx(0.5)
    nothing = measured(None, [1.0, 1.0], a_batch(2)).compute()["ours"]
    assert (nothing["AP"], nothing["AR100"]) == (0, 0)


def test_data_without_masks_are_refused():
    batch = a_batch()
    del batch["targets"][0]["ground_truth"]["masks"]
    with pytest.raises(ValueError, match="image 10 has no true masks to compare with: set masks=true of the data"):
        measured(None, [1.0, 1.0], batch)


class PatchBackbone(nn.Module):
    """A backbone that sees every 16 x 16 patch alone, so that padding does not reach into the image."""

    channels = (32,)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 16, stride=16)

    def forward(self, images):
        return [self.conv(images).relu()]


METHODS = {
    "ours_no_lrp": {"method": "generic_relevance"},
    "ours_with_lrp": {"method": "generic_relevance_lrp"},
    "ours_no_lrp_no_norm": {"method": "generic_relevance", "normalise": False},
    "ablation_no_self_in_10": {"method": "generic_relevance", "self_in_cross": False},
    "ablation_no_aggregation": {"method": "generic_relevance", "aggregate": False},
    "transformer_att": {"method": "transformer_attribution", "rules": "chefer_conserving"},
    "partial_lrp": {"rules": "chefer_conserving", "positive": False, "scaled": True},
    "raw_attn": {"method": "raw_attention"},
    "attn_gradcam": {"method": "attention_gradcam"},
    "rollout": {},
}


def small_detr() -> DETR:
    torch.manual_seed(1)
    sizes = {"hidden_dim": 32, "num_heads": 2, "num_encoder_layers": 2, "num_decoder_layers": 2, "dim_feedforward": 32}
    net = DETR(num_classes=5, backbone="timm:resnet10t", num_queries=7, **sizes)
    net.backbone[0], net.input_proj = PatchBackbone(), nn.Conv2d(32, 32, 1)
    for parameter in net.parameters():  # so that attention, queries and scores differ
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.4)
    nn.init.normal_(net.query_embed.weight)
    nn.init.normal_(net.input_proj.weight)
    return net.double().eval()


def detection_batch(sizes):
    images = torch.zeros(len(sizes), 3, *(max(side) for side in zip(*sizes, strict=True)), dtype=torch.uint8)
    mask, targets = torch.ones(len(sizes), *images.shape[2:], dtype=torch.bool), []
    for i, (h, w) in enumerate(sizes):
        generator = torch.Generator().manual_seed(h)
        images[i, :, :h, :w] = torch.randint(0, 256, (3, h, w), generator=generator)
        mask[i, :h, :w] = False
        truth = {"masks": torch.zeros(0, h, w, dtype=torch.bool), "labels": torch.zeros(0), "iscrowd": torch.zeros(0)}
        target = {"size": torch.tensor([h, w]), "orig_size": torch.tensor([h, w]), "image_id": torch.tensor(h)}
        targets.append({**target, "ground_truth": truth | {"area": torch.zeros(0)}})
    return {"images": images, "mask": mask, "targets": targets}


def masks_by_method(sizes):
    """Masks of each image, and how many queries are explained, from batches of these sizes."""
    task = DetectionTask(small_detr(), threshold=0.2).double()
    measure, methods, kept = RelevanceSegmentation(), methods_by_name(METHODS), 0
    measure.begin(list(methods))
    for each in sizes:
        batch = detection_batch(each)
        found = explain_batch(task, batch, methods, measure.choice)
        measure.see(task, found.outputs, batch)
        kept += len(found.explained.targets) if found.explained else 0
        for name, explanation in found.by_method.items():
            measure.update(name, explanation, found.explained, batch, None)
    masks = {
        (name, image): run_lengths.decode(found["masks"])
        for name, ap in measure._ap.items()
        for image, (found, _) in ap._images.items()
    }
    return masks, kept


def test_a_padded_batch_gives_the_masks_of_single_images():
    sizes = [(64, 96), (96, 64), (48, 80)]
    together, kept = masks_by_method([sizes])
    alone, kept_alone = masks_by_method([[size] for size in sizes])
    assert kept == kept_alone > 5
    for key, mask in alone.items():
        assert (together[key] == mask).all(), key
    assert len({alone[name, 64].tobytes() for name in METHODS}) > 4  # the methods do differ
