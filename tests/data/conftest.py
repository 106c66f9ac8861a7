"""A small set in the COCO 2017 layout, written anew for each test."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


class CocoFolder:
    """Random pictures `train2017/0.png`, ... of 50x40 pixels with ids 100, 101, ... and one box of category 3 each."""

    def __init__(self, root: Path, train: int = 9, val: int = 5):
        self.root = root
        random = np.random.default_rng(0)
        (root / "annotations").mkdir(parents=True)
        for part, count in (("train", train), ("val", val)):
            (root / f"{part}2017").mkdir()
            images, boxes = [], []
            for i in range(count):
                pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / f"{part}2017" / f"{i}.png")
                images.append({"id": 100 + i, "file_name": f"{i}.png", "width": 50, "height": 40})
                boxes.append({"id": i, "image_id": 100 + i, "category_id": 3, "bbox": [5, 6, 20, 10], "area": 150})
            content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
            content["categories"].append({"id": 3, "name": "dog"})
            self.write(part, content)

    def file(self, part: str) -> Path:
        return self.root / "annotations" / f"instances_{part}2017.json"

    def read(self, part: str) -> dict:
        return json.loads(self.file(part).read_text())

    def write(self, part: str, content: dict) -> None:
        self.file(part).write_text(json.dumps(content))

    def picture(self, part: str, index: int) -> Path:
        return self.root / f"{part}2017" / f"{index}.png"


@pytest.fixture
def coco(tmp_path) -> CocoFolder:
    return CocoFolder(tmp_path / "coco")
