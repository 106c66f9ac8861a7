"""`predict` leaves its detections in one file, in COCO's results format."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lightning_xai.callbacks.prediction_writer import PredictionWriter


class WriteDetections(PredictionWriter):
    """Write `<run folder>/detections.json`: image_id, category_id, category, bbox (x, y, w, h in pixels), score.

    Images predicted from files also have their `file_name`. Detections below `min_score` are left out. All processes'
    detections end in the one file, ordered by image and score; an image that comes again is
    written once, see `PredictionWriter`.
    """

    def __init__(self, min_score: float = 0.05) -> None:
        super().__init__()
        self.min_score = min_score

    def collect(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, prediction: list[dict[str, Any]]
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        names = pl_module.class_names or []
        path = getattr(getattr(trainer.datamodule, "predict_set", None), "path", None)
        for image in prediction:
            rows = []
            about = {"image_id": image["image_id"]}
            if path is not None:
                about["file_name"] = str(path(image["image_id"]))
            low, high = image["boxes"].split(2, -1)
            boxes = [low[:, 0], low[:, 1], *(high - low).unbind(-1)]
            for *box, score, label in zip(*boxes, image["scores"], image["labels"], strict=True):
                if score < self.min_score:
                    continue
                name = names[label] if label < len(names) else str(int(label))
                box = [round(float(value), 2) for value in box]
                found = {"category_id": int(label), "category": name, "bbox": box, "score": round(float(score), 5)}
                rows.append(about | found)
            yield image["image_id"], rows

    def write(self, trainer: pl.Trainer, entries: dict[int, list[dict[str, Any]]]) -> None:
        results = [row for rows in entries.values() for row in sorted(rows, key=lambda row: -row["score"])]
        file = Path(trainer.default_root_dir) / "detections.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results) + "\n")
        print(f"{len(results)} detections in {sum(map(bool, entries.values()))} images: {file}")
