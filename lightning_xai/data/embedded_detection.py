"""The embedded world as a detection data set: COCO-style boxes of procedurally drawn scenes, with no download."""

from __future__ import annotations

import mmap
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_xai.data.coco_detection import unannotated_target
from lightning_xai.data.detection_batch import collate_detection
from lightning_xai.data.render_scene import render
from lightning_xai.data.scene import Scene, SceneRecipe, sample_scene
from lightning_xai.data.split_loaders import SplitLoaders

DEFAULT_RECIPE = SceneRecipe()


def shared_zeros(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros in anonymous memory that forked worker processes share and that takes room only where it is written."""
    count = int(np.prod(shape))
    memory = mmap.mmap(-1, max(count * np.dtype(dtype).itemsize, 1))
    return np.frombuffer(memory, dtype=dtype, count=count).reshape(shape)


class Drawn(NamedTuple):
    """A drawn scene: `pixels` (3, h, w), `annotations` (N, 6) of xyxy, label, area, and `owner` (h, w) where asked."""

    pixels: np.ndarray
    annotations: np.ndarray
    owner: np.ndarray | None


class SceneCache:
    """Drawn scenes: `pixels` (n, 3, h, w), `annotations` (n, N, 6) of xyxy, label, area, and their `counts` (n,).

    masks: also `owner` (n, h, w), the number of the object seen at each pixel, -1 on the background. A count of 0 says
    that the scene has not been drawn yet. What is written is a function of the index, so that two processes that draw
    the same scene at the same time write the same bytes.
    """

    def __init__(self, recipe: SceneRecipe, n_scenes: int, masks: bool = False) -> None:
        self.pixels = shared_zeros((n_scenes, 3, recipe.height, recipe.width), np.uint8)
        self.annotations = shared_zeros((n_scenes, recipe.max_objects, 6), np.float32)
        self.owner = shared_zeros((n_scenes, recipe.height, recipe.width), np.int16) if masks else None
        self.counts = shared_zeros((n_scenes,), np.int16)

    def read(self, index: int) -> Drawn | None:
        """A copy of scene `index`, None where it has not been drawn yet."""
        count = int(self.counts[index])
        if not count:
            return None
        owner = None if self.owner is None else self.owner[index].copy()
        return Drawn(self.pixels[index].copy(), self.annotations[index, :count].copy(), owner)

    def write(self, index: int, drawn: Drawn) -> None:
        """Keep scene `index`; its count is written last, as the sign that it is complete."""
        self.pixels[index] = drawn.pixels
        self.annotations[index, : len(drawn.annotations)] = drawn.annotations
        if self.owner is not None:
            self.owner[index] = drawn.owner
        self.counts[index] = len(drawn.annotations)


class EmbeddedDetection(Dataset):
    """Scenes number 0 to `n_scenes` - 1 of a split as `(image (3, h, w) uint8, target)`.

    A target's boxes are the tight boxes of what is *visible* of each object, its areas the visible pixels; no object is
    a crowd. `flip` is the probability of a mirrored picture in training, drawn from (seed, epoch, index). The drawn
    scenes stay in memory where `cache` is set (49 KB each at 128x128), shared with forked workers. masks: the ground
    truth of an evaluation also has `masks` (N, h, w) bool, what is seen of each object (32 KB more in memory).
    """

    def __init__(
        self,
        recipe: SceneRecipe,
        split: str,
        n_scenes: int,
        seed: int = 0,
        flip: float = 0.0,
        cache: bool = True,
        masks: bool = False,
    ) -> None:
        if n_scenes < 1:
            raise ValueError(f"a split needs at least one scene, but {split!r} was asked for {n_scenes}")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip is a probability between 0 and 1, but is {flip}")
        self.recipe, self.split, self.n_scenes, self.seed, self.flip = recipe, split, n_scenes, seed, flip
        self.class_names = list(recipe.shapes)
        self.masks = masks and split != "train"
        self._cache = SceneCache(recipe, n_scenes, self.masks) if cache else None

    def __len__(self) -> int:
        return self.n_scenes

    def __getstate__(self) -> dict[str, Any]:
        # Shared memory cannot be sent to a spawned worker: it starts with an empty cache of its own.
        return {**self.__dict__, "_cache": self._cache is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._cache = SceneCache(self.recipe, self.n_scenes, self.masks) if state["_cache"] else None

    def scene(self, index: int) -> Scene:
        """The structured value that picture `index` is drawn from (before any flip)."""
        if not 0 <= index < self.n_scenes:
            raise IndexError(f"scene {index} does not exist: {self.split!r} holds the scenes 0 to {self.n_scenes - 1}")
        return sample_scene(self.recipe, self.seed, self.split, index)

    def load(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Sample `index` as it is drawn, before any augmentation."""
        pixels, annotations, owner = self._drawn(index)
        size = torch.tensor(pixels.shape[1:], dtype=torch.int64)
        rows = torch.from_numpy(annotations)
        target: dict[str, Any] = {
            "boxes": rows[:, :4].contiguous(),
            "labels": rows[:, 4].long(),
            "area": rows[:, 5].contiguous(),
            "iscrowd": torch.zeros(len(rows), dtype=torch.int64),
        }
        if self.split != "train":
            target["ground_truth"] = {name: value.clone() for name, value in target.items()}
        if owner is not None:
            numbers = torch.arange(len(rows), dtype=torch.int16)[:, None, None]
            target["ground_truth"]["masks"] = torch.from_numpy(owner) == numbers
        target |= {"image_id": torch.tensor(index), "size": size, "orig_size": size.clone()}
        return torch.from_numpy(pixels), target

    def load_readable(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """The same as `load`, as every scene can be drawn; data sets of files put a readable picture instead."""
        return self.load(index)

    def boxes(self, index: int) -> tuple[Tensor, tuple[int, int]]:
        """Boxes (R, 4) xyxy in pixels of sample `index` as it is drawn, and its (h, w)."""
        annotations = self._drawn(index).annotations
        return torch.from_numpy(annotations[:, :4].copy()), (self.recipe.height, self.recipe.width)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, dict[str, Any]]:
        """Sample `index`, or the pair (epoch, index) of a training sampler; without an epoch it is epoch 0."""
        epoch, index = index if isinstance(index, tuple) else (0, index)
        image, target = self.load(index)
        if self.split == "train" and self._flips(epoch, index):
            image = image.flip(2)
            x0, y0, x1, y1 = target["boxes"].unbind(1)
            target["boxes"] = torch.stack([image.shape[2] - x1, y0, image.shape[2] - x0, y1], 1)
        return image, target

    def _flips(self, epoch: int, index: int) -> bool:
        # The fourth entry keeps these numbers apart from those that the scene is sampled from.
        chance = (
            np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index, 1])).random() if self.flip else 1.0
        )
        return chance < self.flip

    def _drawn(self, index: int) -> Drawn:
        kept = self._cache.read(index) if self._cache and 0 <= index < self.n_scenes else None
        if kept is not None:
            return kept
        scene = self.scene(index)
        drawing = render(scene)
        labels = [[self.recipe.shapes.index(item.shape)] for item in scene.objects]
        annotations = np.hstack([drawing.boxes, np.array(labels, np.float32), drawing.areas[:, None]])
        drawn = Drawn(drawing.pixels, annotations, drawing.owner if self.masks else None)
        if self._cache:
            self._cache.write(index, drawn)
        return drawn


class EmbeddedDetectionModule(SplitLoaders):
    """Detection on the embedded world: finite splits of scenes, each a function of (seed, split, index).

    `recipe` holds the knobs of difficulty; the label of a class is its place in `recipe.shapes`. `batch_size` is per
    process. Training samples are shuffled by seed and epoch, alike for any number of processes and workers and after
    a resume in mid-epoch. masks: an evaluation's ground truth has the objects' visible masks.
    """

    def __init__(
        self,
        recipe: SceneRecipe = DEFAULT_RECIPE,
        n_train: int = 4000,
        n_val: int = 200,
        n_test: int = 200,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        flip: float = 0.5,
        cache: bool = True,
        masks: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed=seed)
        self.recipe = recipe
        self.sizes = {"train": n_train, "val": n_val, "test": n_test}
        self.flip, self.cache, self.masks = flip, cache, masks
        self._splits: dict[str, EmbeddedDetection] = {}

    @property
    def class_names(self) -> list[str]:
        """Name of each label."""
        return list(self.recipe.shapes)

    @property
    def num_classes(self) -> int:
        """Largest label + 1."""
        return len(self.recipe.shapes)

    def dataset(self, split: str) -> EmbeddedDetection:
        """The scenes of "train", "val", "test" or "predict", which are those of "test"; the same object each time."""
        split = "test" if split == "predict" else split
        if split not in self._splits:
            flip = self.flip if split == "train" else 0.0
            self._splits[split] = EmbeddedDetection(
                self.recipe, split, self.sizes[split], self.seed, flip, self.cache, self.masks
            )
        return self._splits[split]

    def counted(self, dataset: EmbeddedDetection) -> str:
        return f"n_train={len(dataset)} scenes"

    collate = staticmethod(collate_detection)

    @staticmethod
    def evaluation_transform(image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Scenes are evaluated as they are drawn."""
        return image, target

    def picture_batch(self, picture: Tensor) -> dict[str, Any]:
        """A picture, uint8 (3, h, w), as the one sample of an evaluation batch, without annotations."""
        return self.collate([self.evaluation_transform(picture, unannotated_target(picture))])
