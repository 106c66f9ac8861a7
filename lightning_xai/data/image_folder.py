"""Classification data in one folder a class, as ImageNet and Places are laid out, as a LightningDataModule."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_xai.data.class_folders import (
    check_class_names,
    classes_of,
    folders_in,
    labelled_pictures,
    named,
    pictures_in,
    read_class_names,
)
from lightning_xai.data.classification_batch import collate_classification
from lightning_xai.data.detection_transforms import Draws, sample_seed
from lightning_xai.data.evaluation_resize import CropResize, Sample, SquashResize, Target
from lightning_xai.data.object_mask import read_object_mask
from lightning_xai.data.picture_file import MAX_PIXELS, decode_picture, read_bytes
from lightning_xai.data.picture_loaders import PictureLoaders
from lightning_xai.data.picture_set import PictureSet

Transform = Callable[[Tensor, Target, Draws], Sample]
NO_CLASS = -1


class ImageFolder(PictureSet):
    """Samples (image uint8 (3, h, w), target with `label`, `index` and `size`) of the class folders in `folders`.

    An item is asked for by (epoch, index), or by index alone for epoch 0: the random numbers of its augmentation
    `transform(image, target, draws)` depend on `seed`, epoch and index only. labelled=False: pictures at any depth,
    whose label is -1. masks: for each folder the one with the masks, files of the same names but .png (see
    `object_mask`), which targets then hold as `object_mask`. An unreadable picture is replaced by the next readable
    one.

    Raises: ValueError for a class folder that is no class, FileNotFoundError for missing folders, pictures and masks.
    """

    def __init__(
        self,
        folders: Sequence[str | os.PathLike],
        class_names: Sequence[str],
        transform: Transform,
        seed: int = 0,
        masks: Sequence[str | os.PathLike] | None = None,
        labelled: bool = True,
        max_bad_images: int | float = 0.01,
        max_pixels: int = MAX_PIXELS,
    ):
        self.folders = [Path(folder) for folder in folders]
        self.masks = None if masks is None else [Path(folder) for folder in masks]
        self.class_names = list(class_names)
        self.transform = transform
        self.seed = seed
        self.max_pixels = max_pixels
        parts = [labelled_pictures(f, class_names) if labelled else _pictures(f) for f in self.folders]
        # Arrays of bytes, not a list of a million strings: forked workers would copy those while they count references.
        self._names = np.concatenate([names for names, _ in parts])
        self._folder = np.repeat(np.arange(len(parts)), [len(names) for names, _ in parts])
        self.labels = np.concatenate([labels for _, labels in parts])
        super().__init__(len(self._names), " and ".join(map(str, self.folders)), max_bad_images)
        if self.masks is not None:
            self._check_masks()

    def path(self, index: int) -> Path:
        return self.folders[self._folder[index]] / os.fsdecode(self._names[index])

    @property
    def paths(self) -> list[Path]:
        """The file of every picture, in order."""
        return [self.path(index) for index in range(len(self))]

    def mask_path(self, index: int) -> Path | None:
        """The file of picture `index`'s mask; None where the set has no masks."""
        if self.masks is None:
            return None
        return (self.masks[self._folder[index]] / os.fsdecode(self._names[index])).with_suffix(".png")

    def missing_classes(self) -> list[str]:
        """Names of the classes that have no picture."""
        there = np.bincount(self.labels[self.labels >= 0], minlength=len(self.class_names))
        return [name for name, count in zip(self.class_names, there, strict=True) if not count]

    def load(self, index: int) -> Sample:
        path = self.path(index)
        image = decode_picture(read_bytes(path), path, self.max_pixels)
        size = (image.shape[1], image.shape[2])
        target: dict[str, Any] = {
            "label": torch.tensor(self.labels[index]),
            "index": torch.tensor(index),
            "size": torch.tensor(size),
        }
        if (mask := self.mask_path(index)) is not None:
            target["object_mask"] = read_object_mask(mask, size)
        return image, target

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} does not exist: {self.where} holds the pictures 0 to {len(self) - 1}")
        image, target = self.load_readable(index)
        return self.transform(image, target, Draws(sample_seed(self.seed, epoch, index)))

    def _check_masks(self) -> None:
        files = (self.mask_path(index) for index in range(len(self)))
        missing = [file for file in files if file is not None and not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self)} pictures in {self.where} have no mask, the first one {missing[0]}; add "
                "them, or leave masks out."
            )


def _pictures(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Paths (N,) and labels (N,), all -1, of a folder of pictures or one picture."""
    if folder.is_file():
        names = [""]
    elif not (names := pictures_in(folder)):
        raise FileNotFoundError(
            f"{folder}: no picture here; give a picture or a folder of .jpg, .png or similar files."
        )
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_), np.full(len(names), NO_CLASS)


class ImageFolderModule(PictureLoaders):
    """Classification of pictures in `<root>/train/<class>/`, `<root>/val/<class>/`, at any depth below the class.

    A class's label is its place among the sorted names of the training set's folders; evaluation has the same labels,
    also where it lacks a class. Paths are relative to `root`, or absolute.

    Args:
        root: Where the folders are.
        train: The training set's folder, or several whose pictures together are the set, as original and debug set;
            the first one has all classes.
        val: The validation set's folder.
        test: The test set's folder, `val` unless given.
        predict: Pictures for `predict`: class folders, a folder of pictures or a file; the test set unless given.
        class_names: Names by label, or a file with one a line; where a trained head is to be kept, or a folder holds
            only some of the classes.
        masks: Folder with the objects' masks for evaluation: the mask of `<root>/val/cat/1.jpg` is
            `<root>/<masks>/val/cat/1.png` (see `object_mask`).
        image_size: Side in pixels of the images that the network gets.
        eval_resize: "crop", see `CropResize`; or "squash", see `SquashResize`.
        train_transform: `transform(image, target, draws)` of training; by default that of evaluation.
        eval_transform: The same for evaluation, in the place of `eval_resize`.
        batch_size: Images for each process and training step.
        eval_batch_size: The same for evaluation, `batch_size` unless given.
        num_workers: Processes that load images, for each training process.
        prefetch_factor: Batches that each worker prepares ahead.
        max_bad_images: How many pictures of a set may turn out unreadable, as a fraction or a number. Such a picture is
            replaced by the next readable one.
        max_pixels: Larger pictures count as unreadable.
        seed: Order and augmentation depend on it, on the epoch and on the image alone.
    """

    train_set: ImageFolder | None = None
    val_set: ImageFolder | None = None
    test_set: ImageFolder | None = None
    predict_set: ImageFolder | None = None

    def __init__(
        self,
        root: str | os.PathLike,
        train: str | list[str] = "train",
        val: str = "val",
        test: str | None = None,
        predict: str | None = None,
        class_names: list[str] | str | None = None,
        masks: str | None = None,
        image_size: int = 224,
        eval_resize: Literal["crop", "squash"] = "crop",
        train_transform: Transform | None = None,
        eval_transform: Transform | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        prefetch_factor: int = 2,
        max_bad_images: int | float = 0.01,
        max_pixels: int = MAX_PIXELS,
        seed: int = 0,
    ):
        super().__init__(batch_size, eval_batch_size, num_workers, prefetch_factor, seed)
        if eval_resize not in ("crop", "squash"):
            raise ValueError(f"eval_resize={eval_resize!r} is unknown: it must be 'crop' or 'squash'")
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size is not None and size < 1:
                raise ValueError(f"{name}={size} should be at least 1.")
        self.root = Path(root)
        self.train = [train] if isinstance(train, (str, os.PathLike)) else list(train)
        self.val, self.test, self.predict = val, test or val, predict
        self.given_class_names, self.masks = class_names, masks
        resize = {"crop": CropResize, "squash": SquashResize}[eval_resize]
        self.evaluation_transform = eval_transform or resize(image_size)
        self.training_transform = train_transform or self.evaluation_transform
        self.reading = {"max_bad_images": max_bad_images, "max_pixels": max_pixels}

    collate = staticmethod(collate_classification)

    @cached_property
    def class_names(self) -> list[str] | None:
        """Names by label: those given, else those of the training folder, else of the test folder; None without any.

        `predict` over pictures needs none.
        """
        given = self.given_class_names
        if given is not None:
            names = read_class_names(given) if isinstance(given, (str, os.PathLike)) else list(given)
            check_class_names(names)
            return names
        there = [folder for folder in (self.root / self.train[0], self.root / self.test) if folder.is_dir()]
        return classes_of(there[0]) if there else None

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self._known_classes())

    def _known_classes(self) -> list[str]:
        if self.class_names is None:
            raise FileNotFoundError(
                f"{self.root}: neither {self.train[0]!r} nor {self.test!r} is a folder there, and without class "
                "folders nobody knows the classes; give root, train and val, or class_names."
            )
        return self.class_names

    def picture_batch(self, picture: Tensor) -> dict[str, Tensor]:
        """The batch of one picture (3, h, w) uint8 as it is evaluated, whose class nobody knows."""
        target = {"label": NO_CLASS, "index": 0, "size": torch.tensor(picture.shape[1:])}
        return self.collate([self.evaluation_transform(picture, target, Draws(0))])

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.train_set is None:
            folders = [self.root / folder for folder in self.train]
            self.train_set = self._labelled("train", folders, self.training_transform)
        if stage in ("fit", "validate", "test") and self.val_set is None and (stage != "test" or self.test == self.val):
            self.val_set = self._evaluated("val", self.val)
        if stage == "test" and self.test_set is None:
            self.test_set = self.val_set if self.test == self.val else self._evaluated("test", self.test)
        if stage == "predict" and self.predict_set is None:
            self.predict_set = self._predicted()

    def _evaluated(self, part: str, folder: str) -> ImageFolder:
        return self._labelled(part, [self.root / folder], self.evaluation_transform, self._masks_of(folder))

    def _masks_of(self, folder: str) -> list[Path] | None:
        if self.masks is None:
            return None
        below = Path(folder).name if Path(folder).is_absolute() else folder
        return [self.root / self.masks / below]

    def _labelled(
        self, part: str, folders: list[Path], transform: Transform, masks: list[Path] | None = None
    ) -> ImageFolder:
        pictures = ImageFolder(folders, self._known_classes(), transform, self.seed, masks, **self.reading)
        missing = pictures.missing_classes()
        if missing and part == "train" and self.given_class_names is None:
            raise ValueError(
                f"{pictures.where}: no picture of {named(missing)}; add some, remove the folder, or give class_names "
                "to train without them."
            )
        said = f"{pictures.where}: {len(pictures)} pictures of {len(pictures.class_names) - len(missing)} classes"
        self._say(said + (f", none of {named(missing)}." if missing else "."))
        return pictures

    def _predicted(self) -> ImageFolder:
        if self.predict is None:
            return self._evaluated("predict", self.test)
        place, names = self.root / self.predict, self.class_names or []
        if not place.exists():
            raise FileNotFoundError(f"predict={self.predict!r}: there is no {place}; give a folder or a picture.")
        if place.is_dir() and set(folders_in(place)) & set(names):
            return self._evaluated("predict", self.predict)
        return ImageFolder([place], names, self.evaluation_transform, labelled=False, **self.reading)

    def dataset(self, split: str) -> ImageFolder | None:
        return {"train": self.train_set, "val": self.val_set, "test": self.test_set, "predict": self.predict_set}[split]

    def counted(self, dataset: ImageFolder) -> str:
        return f"{dataset.where}: {len(dataset)} pictures"
