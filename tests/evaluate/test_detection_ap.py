"""Average precision: known answers, the original evaluator, and the same numbers on 1 and on 2 processes."""

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
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lightning_xai.evaluate.detection_ap import AP_NAMES, DetectionAP, ap_table


def truth(boxes, labels, crowd=None, area=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": boxes,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(1) if area is None else torch.tensor(area),
        "iscrowd": torch.tensor(crowd or [0] * len(boxes), dtype=torch.int64),
    }


def detected(boxes, labels, scores):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


def random_image(image_id, classes=4):
    """Objects of all sizes, some crowds, and detections of about their places; image 4 has neither."""
    generator = np.random.default_rng(image_id)
    count = 0 if image_id == 4 else int(generator.integers(1, 9))
    low = generator.uniform(0, 300, (count, 2))
    size = np.exp(generator.uniform(1.5, 5.5, (count, 2)))
    boxes = np.concatenate([low, low + size], 1)
    labels = generator.integers(0, classes, count)
    objects = truth(boxes.tolist(), labels.tolist(), (generator.random(count) < 0.15).astype(int).tolist())
    repeats = generator.integers(0, 4, count)
    guesses = np.repeat(boxes, repeats, 0)
    guesses = guesses + generator.normal(0, 0.08, guesses.shape) * np.tile(np.repeat(size, repeats, 0), 2)
    guessed = np.where(generator.random(len(guesses)) < 0.8, np.repeat(labels, repeats), 1)
    scores = np.round(generator.random(len(guesses)), 1)  # rounded: ties must be broken alike everywhere
    return detected(guesses.tolist(), guessed.tolist(), scores.tolist()), objects


def of_images(ids, **arguments):
    ap = DetectionAP(**arguments)
    images = [random_image(image_id) for image_id in ids]
    ap.update(ids, [image[0] for image in images], [image[1] for image in images])
    return ap


def original_evaluator(ids, iou_thresholds=None):
    annotations, results = [], []
    for image_id in ids:
        found, objects = random_image(image_id)
        for box, label, area, crowd in zip(*(objects[n].tolist() for n in objects), strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label, "iscrowd": crowd}
            annotations.append({**annotation, "area": area, "bbox": xywh(box)})
        for box, label, score in zip(*(found[n].tolist() for n in found), strict=True):
            results.append({"image_id": image_id, "category_id": label, "bbox": xywh(box), "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image_id} for image_id in ids],
            "annotations": annotations,
            "categories": [{"id": i} for i in range(4)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        if iou_thresholds is not None:
            evaluation.params.iouThrs = np.asarray(iou_thresholds)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(AP_NAMES, evaluation.stats.tolist(), strict=True))


def xywh(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


@pytest.fixture(params=["pycocotools", "faster_coco_eval"])
def backend(request):
    pytest.importorskip(request.param)
    return request.param


def test_perfect_detections(backend):
    ap = DetectionAP(backend)
    box = [10.0, 10, 60, 60]  # 50 x 50: a medium object
    ap.update([5], [detected([box], [3], [0.9])], [truth([box], [3])])
    numbers = ap.compute()
    assert numbers == pytest.approx({name: -1.0 if name[-1] in "sl" else 1.0 for name in AP_NAMES})


def test_one_hit_one_miss_one_false_alarm(backend):
    ap = DetectionAP(backend)
    boxes = [[0.0, 0, 50, 50], [100, 100, 150, 150]]
    ap.update([1], [detected([boxes[0], [200, 200, 240, 240]], [0, 0], [0.9, 0.8])], [truth(boxes, [0, 0])])
    numbers = ap.compute()
    # precision is 1 up to recall 0.5, which 51 of the 101 recall points do not exceed
    assert numbers["AP"] == pytest.approx(51 / 101)
    assert numbers["AR100"] == pytest.approx(0.5)


def test_a_crowd_excuses_false_alarms_and_asks_for_nothing(backend):
    ap = DetectionAP(backend)
    objects = truth([[0.0, 0, 50, 50], [100, 100, 200, 200]], [0, 0], crowd=[0, 1])
    found = detected([[110, 110, 150, 150], [120, 110, 160, 150], [0, 0, 50, 50]], [0, 0, 0], [0.9, 0.8, 0.7])
    ap.update([1], [found], [objects])
    assert ap.compute()["AP"] == pytest.approx(1.0)


def test_nothing_detected_nothing_there_and_no_image(backend):
    nothing, objects = detected([], [], []), truth([[0.0, 0, 50, 50]], [0])
    ap = DetectionAP(backend)
    assert ap.compute() == dict.fromkeys(AP_NAMES, -1.0)
    ap.update([1], [nothing], [truth([], [])])
    assert ap.compute()["AP"] == -1
    ap.update([2], [nothing], [objects])
    assert (ap.compute()["AP"], ap.compute()["AR100"]) == (0, 0)
    ap.reset()
    ap.update([1], [detected([[0.0, 0, 50, 50]], [0], [0.9])], [truth([], [])])
    assert ap.compute()["AP"] == -1  # false alarms only: no class has ground truth


@pytest.mark.parametrize("thresholds", [None, [0.3, 0.5, 0.75], np.arange(0.2, 1.0, 0.05), [0.2]])
def test_equals_the_original_evaluator(backend, thresholds):
    ids = list(range(12))
    ap = of_images(ids, backend=backend, iou_thresholds=thresholds)
    numbers, with_curves = ap.compute(), ap.compute(curves=True)
    original = original_evaluator(ids, thresholds)
    assert numbers == pytest.approx(original, abs=1e-6)
    assert {name: with_curves[name] for name in AP_NAMES} == pytest.approx(original, abs=1e-12)
    if thresholds is not None and 0.5 not in list(thresholds):
        assert numbers["AP50"] == numbers["AP75"] == -1


def test_area_given_by_the_annotation_decides_its_size(backend):
    box = [0.0, 0, 50, 50]
    ap = DetectionAP(backend)
    ap.update([1], [detected([box], [0], [0.9])], [truth([box], [0], area=[900.0])])
    numbers = ap.compute()
    assert (numbers["APs"], numbers["APm"]) == pytest.approx((1, -1))


def test_more_than_100_detections_can_count(backend):
    box = [0.0, 0, 50, 50]
    elsewhere = [[300.0 + i, 300, 340 + i, 340] for i in range(150)]
    scores = np.linspace(0.9, 0.5, 151).tolist()
    numbers = {}
    for most in (100, 200):
        ap = DetectionAP(backend, max_detections=(1, 10, most))
        ap.update([1], [detected([*elsewhere, box], [0] * 151, scores)], [truth([box], [0])])
        numbers[most] = ap.compute()
    assert numbers[100]["AP"] == 0
    assert numbers[200]["AP"] == pytest.approx(1 / 151)
    assert numbers[200]["AR100"] == 1


def test_order_of_images_and_repetitions_change_nothing():
    ids = list(range(12))
    once = of_images(ids).compute()
    assert of_images([7, 3, *reversed(ids), 3]).compute() == once


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="'coco' is unknown"):
        DetectionAP("coco")
    with pytest.raises(ValueError, match=r"iou_thresholds=\[0.5, 50.0\]"):
        DetectionAP(iou_thresholds=[0.5, 50])
    with pytest.raises(ValueError, match=r"max_detections=\[100\]"):
        DetectionAP(max_detections=[100])
    ap, box = DetectionAP(), [0.0, 0, 5, 5]
    with pytest.raises(ValueError, match="ground truth of image 7 lacks area"):
        ap.update([7], [detected([box], [0], [1.0])], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}])
    with pytest.raises(ValueError, match="detections of image 7 have NaN"):
        ap.update([7], [detected([box], [0], [torch.nan])], [truth([box], [0])])
    with pytest.raises(ValueError, match="detections of image 7 must have boxes"):
        ap.update([7], [detected([box], [0, 1], [0.5])], [truth([box], [0])])


def test_table_shows_undefined_numbers_as_dashes():
    numbers = dict.fromkeys(AP_NAMES, 0.5) | {"APs": -1.0, "AP": 0.4447}
    table = ap_table(numbers)
    assert "AP  44.5" in table and "APs     -" in table and len(table.splitlines()) == 2


def process(rank: int, folder: str) -> None:
    """One of two processes: the first saw images 0..8 and 10, the second 9..11; both fail together where one fails."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    ap = of_images([10, *range(9)] if rank == 0 else [9, 10, 11])
    numbers, curves = ap.compute(), float(ap.compute(curves=True)["precision"].sum())
    ap.iou_thresholds = ["none"]
    try:
        ap.compute()
        failed = ""
    except RuntimeError as error:
        failed = str(error)
    Path(folder, f"{rank}.json").write_text(json.dumps({"numbers": numbers, "curves": curves, "failed": failed}))
    dist.destroy_process_group()


def test_two_processes_give_exactly_the_numbers_of_one(in_two_processes, tmp_path):
    in_two_processes(__file__, tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    alone = of_images(list(range(12)))
    for answer in found:
        assert answer["numbers"] == alone.compute()
        assert answer["curves"] == float(alone.compute(curves=True)["precision"].sum())
        assert "ValueError" in answer["failed"]


if __name__ == "__main__":
    process(int(os.environ["RANK"]), sys.argv[1])
