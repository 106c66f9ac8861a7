"""A small set in the COCO 2017 layout, written anew for each test."""

import json
from pathlib import Path
from typing import ClassVar

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


class SceneGraphFolder:
    """Two images in asg2cap's layout, boxes inclusive: three samples, the same in `trn`, `val` and `tst`.

    Features count: row i of an image's boxes is (i, i, i), and image j's own feature (10 j, 10 j).
    """

    REGIONS: ClassVar = {
        "im0": {
            "7": {
                "objects": [
                    {"object_id": 5, "name": "dog", "attributes": ["big", "red"], "x": 10, "y": 20, "w": 5, "h": 6},
                    {"object_id": 9, "name": "cat", "attributes": [], "x": 40, "y": 10, "w": 8, "h": 8},
                ],
                "relationships": [{"relationship_id": 0, "subject_id": 5, "object_id": 9, "name": "chases"}],
                "phrase": "a big red dog chases the cat",
            },
            "8": {
                "objects": [{"object_id": 9, "name": "cat", "attributes": [], "x": 40, "y": 10, "w": 8, "h": 8}],
                "relationships": [],
                "phrase": "a zebra",
            },
        },
        "im1": {
            "3": {
                "objects": [{"object_id": 1, "name": "sun", "attributes": ["hot"], "x": 0, "y": 0, "w": 4, "h": 4}],
                "relationships": [],
                "phrase": "the hot sun",
            }
        },
    }
    BOXES: ClassVar = {"im0": [[40, 10, 47, 17], [10, 10, 47, 25], [10, 20, 14, 25]], "im1": [[0, 0, 3, 3]]}
    WORDS: ClassVar = ["<BOS>", "<EOS>", "<UNK>", "a", "big", "red", "dog", "chases", "the", "cat", "hot", "sun"]

    def __init__(self, root: Path):
        from lightning_xai.data.node_features import write_box_features

        self.root = root
        self.annotations = root / "annotation" / "controllable"
        self.image_features = root / "ordered_feature" / "MP" / "resnet101.ctrl"
        self.box_features = root / "ordered_feature" / "SA" / "X_101_32x8d" / "objrels"
        self.regions = self.annotations / "regionfiles"
        for folder in (self.regions, self.annotations / "public_split", self.image_features, self.box_features):
            folder.mkdir(parents=True)
        np.save(self.annotations / "int2word.npy", np.array(self.WORDS))
        self.write_json(self.annotations / "word2int.json", {word: i for i, word in enumerate(self.WORDS)})
        for split in ("trn", "val", "tst"):
            np.save(self.regions / f"{split}_names.npy", np.array([["im0", "7"], ["im1", "3"], ["im0", "8"]]))
            np.save(self.annotations / "public_split" / f"{split}_names.npy", np.array(["im0.jpg", "im1.jpg"]))
            np.save(self.image_features / f"{split}_ft.npy", np.array([[0, 0], [10, 10]], np.float32))
        for image, regions in self.REGIONS.items():
            self.write_json(self.regions / f"{image}.json", regions)
            boxes = np.array(self.BOXES[image])
            rows = np.repeat(np.arange(len(boxes), dtype=np.float32)[:, None], 3, axis=1)
            write_box_features(self.box_features, image, boxes, rows, (60, 80))

    @staticmethod
    def write_json(file: Path, content) -> None:
        file.write_text(json.dumps(content))


@pytest.fixture
def scene_graphs(tmp_path) -> SceneGraphFolder:
    pytest.importorskip("h5py")
    return SceneGraphFolder(tmp_path / "asg")
