"""`predict` over a folder of photographs, as a user types it: no annotations, and not every file whole."""

import json
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import yaml
from PIL import Image

from lightning_xai.cli import main
from lightning_xai.nets.deformable_detr import DeformableDETR
from lightning_xai.tasks.detection import DetectionTask

NET = {
    "num_classes": 4,
    "backbone": "timm:resnet10t",
    "backbone_args": {"channels": [8, 8, 16, 16], "stem_width": 8},
    "hidden_dim": 32,
    "num_heads": 2,
    "num_feature_levels": 2,
    "out_strides": [16, 32],
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "dim_feedforward": 32,
    "num_queries": 5,
}


@pytest.fixture
def photos(tmp_path) -> Path:
    """Four photographs."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(4):
        pixels = random.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return folder


def arguments(folder: Path, **data) -> list[str]:
    """The options of a run in `folder` with an untrained network."""
    net = {"class_path": "lightning_xai.nets.deformable_detr.DeformableDETR", "init_args": NET}
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    callback = "lightning_xai.callbacks.write_detections.WriteDetections"
    config = {
        "trainer": {**quiet, "callbacks": [{"class_path": callback, "init_args": {"min_score": 0.0}}]},
        "model": {"class_path": "lightning_xai.tasks.detection.DetectionTask", "init_args": {"net": net}},
        "data": {
            "class_path": "lightning_xai.data.coco.CocoDataModule",
            "init_args": {"num_workers": 0, "scales": [64], "max_size": 96, **data},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_model_summary=False, default_root_dir=folder)
    trainer.strategy.connect(DetectionTask(DeformableDETR(**NET)))
    trainer.save_checkpoint(folder / "weights.ckpt")
    given = {"config": folder / "config.yaml", "ckpt_path": folder / "weights.ckpt", "run_dir": folder / "run"}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def detections(folder: Path) -> list[dict]:
    return json.loads((folder / "run" / "detections.json").read_text())


def names(results: list[dict]) -> list[str]:
    return [Path(result["file_name"]).name for result in results]


def test_a_folder_needs_no_annotations(photos, tmp_path):
    assert main(["predict", *arguments(tmp_path, predict_images=str(photos))]) == 0
    results = detections(tmp_path)
    assert sorted(set(names(results))) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert all(result["category"] == str(result["category_id"]) for result in results)


def test_an_unreadable_picture_is_reported_and_no_other_is_written_twice(photos, tmp_path, caplog):
    broken = photos / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    assert main(["predict", *arguments(tmp_path, predict_images=str(photos), batch_size=1)]) == 0
    counts = {name: names(detections(tmp_path)).count(name) for name in ("0.jpg", "1.jpg", "2.jpg", "3.jpg")}
    assert counts["1.jpg"] == 0 and counts["0.jpg"] == counts["2.jpg"] == counts["3.jpg"] > 0
    assert any("1 unreadable" in line and str(broken) in line for line in caplog.messages)


def test_what_is_wrong_with_the_annotations_is_shown_once(photos, tmp_path, capfd):
    file = tmp_path / "boxes.json"
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(4)]
    boxes = [{"id": i, "image_id": 0, "category_id": i, "bbox": [5, 5, 20, 20], "area": 400} for i in (1, 9)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    file.write_text(json.dumps(content))
    data = {"val_folder": str(photos), "val_annotations": str(file)}
    assert main(["validate", *arguments(tmp_path, **data)]) == 0
    assert capfd.readouterr().err.count("1 boxes of an unknown category id left out") == 1
