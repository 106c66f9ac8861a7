"""Masks of polygons and run lengths, against pycocotools on files."""

import json
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

from lightning_xai.data.coco import CocoDataModule
from lightning_xai.data.coco_annotations import read_annotations
from lightning_xai.data.coco_outlines import outline_masks, usable_outline

SHAPE = (40, 50)
STAR = [[5.0, 5.0, 30.0, 8.0, 25.0, 30.0], [35.0, 20.0, 45.0, 20.0, 45.0, 35.0, 35.0, 35.0]]


def uncompressed(mask):
    """COCO's run lengths: column after column, background first."""
    flat = mask.T.flatten().tolist()
    counts, value, length = [], 0, 0
    for pixel in flat:
        if pixel != value:
            counts.append(length)
            value, length = pixel, 0
        length += 1
    return {"size": list(mask.shape), "counts": [*counts, length]}


def compressed(mask):
    code = run_lengths.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


def annotated(file, outlines):
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": i % 2}
        | ({} if outline is None else {"segmentation": outline})
        for i, outline in enumerate(outlines)
    ]
    images = [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    file.write_text(json.dumps(content))
    return file


def test_agrees_with_pycocotools(tmp_path):
    blob = (np.random.default_rng(0).random(SHAPE) < 0.3).astype(np.uint8)
    file = annotated(tmp_path / "x.json", [STAR, uncompressed(blob), STAR[:1], compressed(blob)])
    read, coco = read_annotations(file, outlines=True), COCO(file)
    masks = outline_masks(read.outlines_of_image(0), SHAPE, "x")
    expected = np.stack([coco.annToMask(annotation) for annotation in coco.loadAnns([1, 2, 3, 4])])
    assert torch.equal(masks, torch.from_numpy(expected).bool())
    assert masks.any((1, 2)).all()
    assert read_annotations(file).outlines is None


def test_objects_without_a_usable_outline_are_left_out_and_counted(tmp_path):
    bad = [None, [], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, math.nan]], {"size": [2, 2], "counts": [3]}, {"counts": "x"}]
    bad += [{"size": list(SHAPE), "counts": counts} for counts in ("", "é")]
    read = read_annotations(annotated(tmp_path / "x.json", [STAR, *bad]), outlines=True)
    assert len(read.boxes) == len(read.outlines) == 1
    assert read.faults["objects without a usable outline left out"][0] == len(bad)
    assert len(read_annotations(tmp_path / "x.json").boxes) == 1 + len(bad)


def test_one_polygon_of_three_corners_is_enough():
    assert usable_outline([[1, 2, 3, 4], [0, 0, 9, 0, 9, 9]]) == [[0, 0, 9, 0, 9, 9]]


def test_run_lengths_of_another_size_are_named():
    with pytest.raises(ValueError, match=r"a\.png: run lengths of size \[2, 3\] in a picture of size \[40, 50\]"):
        outline_masks([{"size": [2, 3], "counts": [6]}], SHAPE, "a.png")


def test_run_lengths_that_cannot_be_read_are_named():
    with pytest.raises(ValueError, match=r"x\.json: a\.png: run lengths 'garbage!!' cannot be read"):
        outline_masks([{"size": list(SHAPE), "counts": "garbage!!"}], SHAPE, "x.json: a.png")


def test_evaluation_has_masks_on_request(coco):
    content = coco.read("val")
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[5, 6, 25, 6, 25, 16, 5, 16]]
    coco.write("val", content)
    module = CocoDataModule(coco.root, masks=True, num_workers=0)
    module.setup("fit")
    truth = module.val_set[0][1]["ground_truth"]
    assert truth["masks"].shape == (1, 40, 50) and truth["masks"].dtype == torch.bool
    assert truth["masks"].nonzero().amin(0).tolist() == [0, 6, 5] and int(truth["masks"].sum()) == 200
    assert module.train_set.annotations.outlines is None
    module = CocoDataModule(coco.root, num_workers=0)
    module.setup("test")
    assert "masks" not in module.val_set[0][1]["ground_truth"]
