"""`predict` leaves its detections in one file, in COCO's results format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.callbacks import BasePredictionWriter


class WriteDetections(BasePredictionWriter):
    """Write `<run folder>/detections.json`: image_id, category_id, category, bbox (x, y, w, h in pixels), score.

    Images predicted from files also have their `file_name`. Detections below `min_score` are left out. All processes'
    detections end in the one file, ordered by image and score. An image that comes again, as the one that a data set
    puts in the place of an unreadable picture does, is written once.
    """

    def __init__(self, min_score: float = 0.05) -> None:
        super().__init__("batch_and_epoch")
        self.min_score = min_score
        self.results: dict[int, list[dict[str, Any]]] = {}  # of each image

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.results = {}

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: list[dict[str, Any]],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        names = pl_module.class_names or []
        path = getattr(getattr(trainer.datamodule, "predict_set", None), "path", None)
        for image in prediction:
            if image["image_id"] in self.results:
                continue
            rows = self.results[image["image_id"]] = []
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

    def write_on_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        parts = [self.results]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            dist.all_gather_object(parts, self.results)
        if not trainer.is_global_zero:
            return
        images = {number: rows for part in reversed(parts) for number, rows in part.items()}
        results = sorted((r for rows in images.values() for r in rows), key=lambda r: (r["image_id"], -r["score"]))
        file = Path(trainer.default_root_dir) / "detections.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results) + "\n")
        print(f"{len(results)} detections in {len({r['image_id'] for r in results})} images: {file}")
