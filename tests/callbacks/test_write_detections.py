"""Predictions become one file in COCO's results format."""

import json
from types import SimpleNamespace

import torch
import torch.distributed as dist

from lightning_xai.callbacks.write_detections import WriteDetections


def test_file_of_two_batches(tmp_path):
    trainer = SimpleNamespace(
        default_root_dir=tmp_path,
        world_size=1,
        is_global_zero=True,
        datamodule=SimpleNamespace(predict_set=SimpleNamespace(path=lambda index: f"picture{index}.png")),
    )
    module, writer = SimpleNamespace(class_names=["cat", "dog"]), WriteDetections(min_score=0.2)
    boxes = torch.tensor([[1, 1, 2, 2], [0, 0, 5, 5], [10.0, 20, 30, 60]])  # in the order of queries, not of scores
    scores, labels = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([1, 0, 1])
    writer.on_predict_start(trainer, module)
    for image in (1, 0):
        found = [{"image_id": image, "boxes": boxes, "scores": scores, "labels": labels}]
        writer.write_on_batch_end(trainer, module, found, None, None, 0, 0)
    writer.write_on_epoch_end(trainer, module, [], [])
    results = json.loads((tmp_path / "detections.json").read_text())
    assert [result["image_id"] for result in results] == [0, 0, 1, 1]
    assert results[0] == {
        "image_id": 0,
        "file_name": "picture0.png",
        "category_id": 1,
        "category": "dog",
        "bbox": [10.0, 20.0, 20.0, 40.0],
        "score": 0.9,
    }


def test_an_image_that_comes_again_is_written_once(tmp_path, monkeypatch):
    def write(writer, trainer, score, *images):
        for image in images:
            scores = torch.tensor([score, score / 2, 0.0])
            found = {"image_id": image, "boxes": torch.ones(3, 4), "scores": scores, "labels": torch.zeros(3).long()}
            writer.write_on_batch_end(trainer, module, [found], None, None, 0, 0)

    module = SimpleNamespace(class_names=None)
    trainer = SimpleNamespace(default_root_dir=tmp_path, world_size=2, is_global_zero=True, datamodule=None)
    here, there = WriteDetections(), WriteDetections()
    write(here, trainer, 0.8, 0, 2, 2)
    write(there, trainer, 0.6, 2, 3)

    def gather(parts, own):
        parts[:] = [own, there.entries]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    here.write_on_epoch_end(trainer, module, [], [])
    results = json.loads((tmp_path / "detections.json").read_text())
    found = [(result["image_id"], result["score"]) for result in results]
    assert found == [(0, 0.8), (0, 0.4), (2, 0.8), (2, 0.4), (3, 0.6), (3, 0.3)]
