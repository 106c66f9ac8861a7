"""Average precision of masks: known answers, the original evaluator on files, and 1 or 2 processes alike."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lightning_xai.evaluate.detection_ap import AP_NAMES
from lightning_xai.evaluate.segmentation_ap import EXPLANATION_THRESHOLDS, SegmentationAP

SIZE = (120, 160)


def masks_of(boxes) -> torch.Tensor:
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def truth(masks, labels, crowd=None, area=None):
    return {
        "masks": masks,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "area": masks.sum((1, 2)).double() if area is None else torch.tensor(area),
        "iscrowd": torch.tensor(crowd or [0] * len(masks), dtype=torch.int64),
    }


def detected(masks, labels, scores):
    return {
        "masks": masks,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


def random_image(image_id, classes=3):
    """Ellipses of many sizes, some crowds, and noisy detections, some of them empty; image 4 has neither."""
    generator = np.random.default_rng(image_id)
    count = 0 if image_id == 4 else int(generator.integers(1, 6))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    ellipses = generator.uniform([0, 0, 4, 4], [SIZE[0], SIZE[1], 60, 60], (count, 4))

    def draw(parts):
        drawn = [((y - a) / c) ** 2 + ((x - b) / d) ** 2 < 1 for a, b, c, d in parts]
        return torch.from_numpy(np.stack(drawn)) if drawn else torch.zeros(0, *SIZE, dtype=torch.bool)

    labels = generator.integers(0, classes, count)
    objects = truth(draw(ellipses), labels.tolist(), (generator.random(count) < 0.2).astype(int).tolist())
    guesses = np.repeat(ellipses, 2, 0) * generator.normal(1, 0.15, (2 * count, 4))
    masks = draw(guesses)
    masks[generator.random(len(masks)) < 0.2] = False
    guessed = np.where(generator.random(len(guesses)) < 0.8, np.repeat(labels, 2), 1)
    scores = np.round(generator.random(len(guesses)), 1)  # rounded: ties must be broken alike everywhere
    return detected(masks, guessed.tolist(), scores.tolist()), objects


def of_images(ids, **arguments):
    ap = SegmentationAP(**arguments)
    images = [random_image(image_id) for image_id in ids]
    ap.update(ids, [image[0] for image in images], [image[1] for image in images])
    return ap


def original_evaluator(ids, folder, iou_thresholds=None):
    """The evaluator as everybody uses it: ground truth and results as files of COCO's layout."""

    def encoded(mask):
        code = run_lengths.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        return {"size": code["size"], "counts": code["counts"].decode()}

    annotations, results = [], []
    for image_id in ids:
        found, objects = random_image(image_id)
        others = (objects[name].tolist() for name in ("labels", "area", "iscrowd"))
        for mask, label, area, crowd in zip(objects["masks"], *others, strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label, "iscrowd": crowd}
            annotations.append({**annotation, "area": area, "segmentation": encoded(mask)})
        for mask, label, score in zip(found["masks"], found["labels"].tolist(), found["scores"].tolist(), strict=True):
            result = {"image_id": image_id, "category_id": label, "score": score}
            results.append({**result, "segmentation": encoded(mask)})
    images = [{"id": image_id, "height": SIZE[0], "width": SIZE[1]} for image_id in ids]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": i} for i in range(3)]}
    (folder / "truth.json").write_text(json.dumps(content))
    (folder / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(folder / "results.json")), "segm")
        if iou_thresholds is not None:
            evaluation.params.iouThrs = np.asarray(iou_thresholds)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(AP_NAMES, evaluation.stats.tolist(), strict=True))


@pytest.fixture(params=["pycocotools", "faster_coco_eval"])
def backend(request):
    pytest.importorskip(request.param)
    return request.param


def test_perfect_masks(backend):
    ap = SegmentationAP(backend)
    masks = masks_of([(10, 10, 60, 60)])  # 50 x 50: a medium object
    ap.update([5], [detected(masks, [3], [0.9])], [truth(masks, [3])])
    assert ap.compute() == pytest.approx({name: -1.0 if name[-1] in "sl" else 1.0 for name in AP_NAMES})


def test_masks_decide_and_not_their_boxes(backend):
    """A diagonal pair of squares has the same box as its mirror picture, and no pixel in common."""
    ap = SegmentationAP(backend)
    squares = masks_of([(0, 0, 40, 40), (40, 40, 80, 80), (40, 0, 80, 40), (0, 40, 40, 80)])
    ap.update([1], [detected(squares[:2].any(0)[None], [0], [0.9])], [truth(squares[2:].any(0)[None], [0])])
    assert ap.compute()["AP"] == 0


def test_lower_thresholds_accept_a_rough_mask(backend):
    """IoU 0.45 counts at 0.2, 0.25 .. 0.45: 6 of 16 thresholds; AP50 stays 0."""
    found, true = masks_of([(0, 0, 45, 100)]), masks_of([(0, 0, 100, 100)])
    ap = SegmentationAP(backend, iou_thresholds=EXPLANATION_THRESHOLDS - 1e-6)
    ap.update([1], [detected(found, [0], [0.9])], [truth(true, [0])])
    assert ap.compute()["AP"] == pytest.approx(6 / 16)
    ap = SegmentationAP(backend)
    ap.update([1], [detected(found, [0], [0.9])], [truth(true, [0])])
    assert ap.compute()["AP"] == 0


def test_an_empty_mask_is_a_false_alarm(backend):
    masks = masks_of([(10, 10, 60, 60)])
    ap = SegmentationAP(backend)
    ap.update([1], [detected(torch.cat([masks & False, masks]), [0, 0], [0.9, 0.8])], [truth(masks, [0])])
    numbers = ap.compute()
    assert (numbers["AP"], numbers["APm"]) == pytest.approx((0.5, 1.0))  # area 0 is outside of medium


def test_nothing_detected_nothing_there_and_no_image(backend):
    nothing, box = torch.zeros(0, *SIZE, dtype=torch.bool), masks_of([(0, 0, 50, 50)])
    ap = SegmentationAP(backend)
    assert ap.compute() == dict.fromkeys(AP_NAMES, -1.0)
    ap.update([1], [detected(nothing, [], [])], [truth(nothing, [])])
    assert ap.compute()["AP"] == -1
    ap.update([2], [detected(nothing, [], [])], [truth(box, [0])])
    assert (ap.compute()["AP"], ap.compute()["AR100"]) == (0, 0)


@pytest.mark.parametrize("thresholds", [None, EXPLANATION_THRESHOLDS, [0.2]], ids=["coco", "explanation", "one"])
def test_equals_the_original_evaluator(backend, thresholds, tmp_path):
    ids = list(range(10))
    numbers = of_images(ids, backend=backend, iou_thresholds=thresholds).compute()
    assert numbers == pytest.approx(original_evaluator(ids, tmp_path, thresholds), abs=1e-9)
    assert numbers["AP"] > 0.05


def test_explanation_thresholds_hold_50_and_75_exactly():
    assert len(EXPLANATION_THRESHOLDS) == 16
    assert {0.5, 0.75} <= set(EXPLANATION_THRESHOLDS.tolist())


def test_order_of_images_and_repetitions_change_nothing():
    ids = list(range(8))
    assert of_images([7, 3, *reversed(ids), 3]).compute() == of_images(ids).compute()


def test_bad_input_is_named():
    ap, masks = SegmentationAP(), masks_of([(0, 0, 5, 5)])
    with pytest.raises(ValueError, match="detections of image 7 lacks masks"):
        ap.update([7], [{"labels": torch.zeros(0), "scores": torch.zeros(0)}], [truth(masks, [0])])
    with pytest.raises(ValueError, match="detections of image 7 must have masks"):
        ap.update([7], [detected(masks, [0, 1], [0.5])], [truth(masks, [0])])
    with pytest.raises(ValueError, match="detections of image 7 have NaN"):
        ap.update([7], [detected(masks, [0], [torch.nan])], [truth(masks, [0])])
    with pytest.raises(ValueError, match=r"size \(120, 80\), the true ones of \(120, 160\)"):
        ap.update([7], [detected(masks[:, :, :80], [0], [0.5])], [truth(masks, [0])])


def process(rank: int, folder: str) -> None:
    """One of two processes: the first saw images 0..6 and 8, the second 7..9."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    ap = of_images([8, *range(7)] if rank == 0 else [7, 8, 9])
    Path(folder, f"{rank}.json").write_text(json.dumps(ap.compute()))
    dist.destroy_process_group()


def test_two_processes_give_exactly_the_numbers_of_one(in_two_processes, tmp_path):
    in_two_processes(__file__, tmp_path)
    alone = of_images(list(range(10))).compute()
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone


if __name__ == "__main__":
    process(int(os.environ["RANK"]), sys.argv[1])
