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


class ClassFolders:
    """Pictures `train/cat/0.png`, ... of 50x40 pixels, each of one grey level, in class folders; masks in `masks`."""

    CLASSES = ("cat", "dog", "emu")

    def __init__(self, root: Path, train: int = 4, val: int = 2):
        self.root = root
        for split, count in (("train", train), ("val", val)):
            for label, name in enumerate(self.CLASSES):
                for number in range(count):
                    self.add(split, name, number, level=100 * (split == "val") + 20 * label + number)

    def picture(self, split: str, name: str, number: int) -> Path:
        return self.root / split / name / f"{number}.png"

    def mask(self, split: str, name: str, number: int) -> Path:
        return self.root / "masks" / split / name / f"{number}.png"

    def add(self, split: str, name: str, number: int, level: int) -> None:
        for path, pixels in (
            (self.picture(split, name, number), np.full((40, 50, 3), level, np.uint8)),
            (self.mask(split, name, number), np.repeat(np.array([[0, 255]], np.uint8), 25, 1).repeat(40, 0)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


@pytest.fixture
def class_folders(tmp_path) -> ClassFolders:
    return ClassFolders(tmp_path / "folders")
