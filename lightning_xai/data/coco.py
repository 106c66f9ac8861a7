"""COCO 2017 and everything laid out like it, as a LightningDataModule."""

import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from torch import Tensor
from torch.utils.data import DataLoader

from lightning_xai.data.coco_annotations import CocoAnnotations, read_annotations, read_categories, unannotated
from lightning_xai.data.coco_detection import CocoDetection, find_missing, unannotated_target
from lightning_xai.data.detection_batch import collate_detection
from lightning_xai.data.detection_transforms import SCALES, EvaluationTransform, TrainingTransform
from lightning_xai.data.picture_file import MAX_PIXELS, list_pictures
from lightning_xai.data.picture_loaders import PictureLoaders
from lightning_xai.data.samplers import contiguous_order, node_order, strided_order


class CocoDataModule(PictureLoaders):
    """Detection data in the COCO 2017 layout, any category ids; labels are those ids.

    Args:
        root: Folder with `train2017/`, `val2017/` and `annotations/instances_{train,val}2017.json`.
        train_folder, train_annotations, val_folder, val_annotations: Where these are when not in `root`.
        predict_images: A folder of pictures, a picture or a list of them, for `predict`; ids are positions in it.
        batch_size: Images for each process and training step.
        val_batch_size: The same for evaluation, `batch_size` unless given.
        num_workers: Processes that load training images, for each training process.
        val_num_workers: The same for evaluation, `num_workers` unless given.
        prefetch_factor: Batches that each worker prepares ahead.
        scales: Short sides in pixels, of which training draws one and evaluation takes the largest.
        max_size: Largest long side in pixels.
        crop_scales, crop_range, crop_probability, flip_probability: See `TrainingTransform`.
        pad_to_multiple: Round the height and width of every batch up to a multiple of it. On a CPU that bounds the
            number of different shapes, for each of which oneDNN keeps memory.
        cache_mode: Hold the image files in memory, on each node a share a process; a training process then sees
            only images of its own share, as with the reference's `NodeDistributedSampler`.
        sample_order: "strided": the global batches do not depend on the number of processes; "contiguous": each
            process takes one chunk of the shuffled list, as the reference does.
        masks: Evaluation's ground truth also has the objects' masks, of polygons or run lengths.
        on_missing: Whether an image that is not in its folder is an error at setup, or left out.
        max_bad_images: How many pictures may turn out unreadable, as a fraction or a number. Such a picture is
            replaced by the next readable one; its image is then not part of the evaluation.
        max_pixels: Larger pictures count as unreadable.
        apply_exif_orientation: Turn pictures as their EXIF data says; COCO's annotations expect that not.
        seed: Order and augmentation depend on it, on the epoch and on the image alone.
    """

    train_set: CocoDetection | None = None
    val_set: CocoDetection | None = None
    predict_set: CocoDetection | None = None

    def __init__(
        self,
        root: str | os.PathLike | None = None,
        train_folder: str | os.PathLike | None = None,
        train_annotations: str | os.PathLike | None = None,
        val_folder: str | os.PathLike | None = None,
        val_annotations: str | os.PathLike | None = None,
        predict_images: str | list[str] | None = None,
        batch_size: int = 2,
        val_batch_size: int | None = None,
        num_workers: int = 2,
        val_num_workers: int | None = None,
        prefetch_factor: int = 2,
        scales: Sequence[int] = SCALES,
        max_size: int | None = 1333,
        crop_scales: Sequence[int] = (400, 500, 600),
        crop_range: tuple[int, int] = (384, 600),
        crop_probability: float = 0.5,
        flip_probability: float = 0.5,
        pad_to_multiple: int | None = None,
        cache_mode: bool = False,
        sample_order: Literal["strided", "contiguous"] = "strided",
        masks: bool = False,
        on_missing: Literal["error", "skip"] = "error",
        max_bad_images: int | float = 0.01,
        max_pixels: int = MAX_PIXELS,
        apply_exif_orientation: bool = False,
        seed: int = 0,
    ):
        super().__init__(batch_size, val_batch_size, num_workers, prefetch_factor, seed, val_num_workers)
        if root is None and (train_folder is None) != (train_annotations is None):
            raise ValueError("train_folder and train_annotations belong together; give both, or root.")
        if root is None and (val_folder is None) != (val_annotations is None):
            raise ValueError("val_folder and val_annotations belong together; give both, or root.")
        for name, size in (("batch_size", batch_size), ("val_batch_size", val_batch_size)):
            if size is not None and size < 1:
                raise ValueError(f"{name}={size} should be at least 1.")
        layout = Path(root) if root is not None else None
        self.folders: dict[str, Path | None] = {}
        self.annotation_files: dict[str, Path | None] = {}
        for part, folder, file in (("train", train_folder, train_annotations), ("val", val_folder, val_annotations)):
            self.folders[part] = Path(folder) if folder else layout and layout / f"{part}2017"
            usual = layout and layout / "annotations" / f"instances_{part}2017.json"
            self.annotation_files[part] = Path(file) if file else usual
        self.predict_images = predict_images
        self.collate = partial(collate_detection, pad_to_multiple=pad_to_multiple)
        self.cache_mode = cache_mode
        self.sample_order = sample_order
        self.masks = masks
        self.on_missing = on_missing
        self.training_transform = TrainingTransform(
            scales, max_size, crop_scales, crop_range, flip_probability, crop_probability
        )
        self.evaluation_transform = EvaluationTransform(max(scales), max_size)
        self._reading = {
            "max_bad_images": max_bad_images,
            "max_pixels": max_pixels,
            "apply_exif_orientation": apply_exif_orientation,
        }

    @cached_property
    def categories(self) -> dict[int, str]:
        """Category names by id, of the training and the validation file together."""
        files = self._existing_annotation_files()
        if not files:
            given = [str(file) for file in self.annotation_files.values() if file is not None]
            raise FileNotFoundError(
                f"No annotation file at {' or '.join(given) or 'any place'}; give root, or train_annotations."
            )
        categories: dict[int, str] = {}
        for file in files:
            for number, name in read_categories(file).items():
                if categories.setdefault(number, name) != name:
                    raise ValueError(
                        f"{file}: category id {number} is {name!r}, but {categories[number]!r} in {files[0]}."
                    )
        return categories

    def _existing_annotation_files(self) -> list[Path]:
        return [file for file in self.annotation_files.values() if file is not None and file.is_file()]

    @property
    def class_names(self) -> list[str] | None:
        """Names by label, "" for an id that no category has; None where there is no annotation file.

        `predict` over a folder of pictures needs no annotations; `fit`, `validate` and `test` raise in `setup`.
        """
        if not self._existing_annotation_files():
            return None
        return [self.categories.get(label, "") for label in range(self.num_classes)]

    @property
    def num_classes(self) -> int:
        """Largest category id + 1: 91 for COCO."""
        return max(self.categories) + 1

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.train_set is None:
            annotations = self._annotations("train")
            if not annotations.trainable().any():
                raise ValueError(f"{annotations.file}: no box to train on. {annotations.summary()}")
            self.train_set = self._detection(self.folders["train"], annotations, self.training_transform, self.seed)
            local_rank, local_size = self._process_of_node()
            self._cache(self.train_set, list(range(local_rank, len(self.train_set), local_size)))
        if stage in ("fit", "validate", "test") and self.val_set is None:
            annotations = self._annotations("val")
            self.val_set = self._detection(
                self.folders["val"], annotations, self.evaluation_transform, with_ground_truth=True
            )
            self._cache(self.val_set, self._evaluation_sampler(self.val_set).indices)
        if stage == "predict" and self.predict_set is None:
            if self.predict_images is None:
                raise ValueError("predict_images is not given; give a folder of pictures or a list of files.")
            files = list_pictures(self.predict_images)
            self.predict_set = self._detection(Path(), unannotated(files), self.evaluation_transform)

    def _annotations(self, part: str) -> CocoAnnotations:
        file, folder = self.annotation_files[part], self.folders[part]
        if file is None or folder is None:
            raise ValueError(f"Neither root nor {part}_folder and {part}_annotations are given.")
        annotations = read_annotations(file, outlines=self.masks and part == "val")
        missing = find_missing(folder, annotations)
        if missing.any():
            names = [str(name) for name in annotations.file_names[missing][:5]]
            what = f"{int(missing.sum())} of {len(missing)} images of {file} are not in {folder} (first: {names})"
            if self.on_missing == "error" or missing.all():
                raise FileNotFoundError(f"{what}; add them, or leave them out with on_missing=skip.")
            annotations = annotations.without_images(missing)
            annotations.faults["missing images left out"] = (int(missing.sum()), names[0])
        self._say(annotations.summary())
        return annotations

    def _detection(self, folder, annotations, transform, seed=0, with_ground_truth=False) -> CocoDetection:
        return CocoDetection(folder, annotations, transform, seed, with_ground_truth, **self._reading)

    def _cache(self, dataset: CocoDetection, indices: list[int]) -> None:
        if self.cache_mode:
            dataset.hold_in_memory(indices)
            self._say(f"{dataset.folder}: {len(dataset.cache)} images held in {dataset.cache.nbytes / 2**20:.0f} MiB.")

    def dataset(self, split: str) -> CocoDetection | None:
        evaluated = {"val": self.val_set, "test": self.val_set, "predict": self.predict_set}
        return {"train": self.train_set, **evaluated}[split]

    def _process_of_node(self) -> tuple[int, int]:
        return (self.trainer.local_rank, self.trainer.num_devices) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader:
        rank, replicas = self._process()
        length = len(self.train_set)
        if self.cache_mode:
            local_rank, local_size = self._process_of_node()
            order = partial(node_order, length, local_rank=local_rank, local_size=local_size)
        else:
            order = partial({"strided": strided_order, "contiguous": contiguous_order}[self.sample_order], length)
        sampler = self._training_sampler(partial(order, rank=rank, replicas=replicas, seed=self.seed))
        if len(sampler) < self.batch_size:
            raise ValueError(
                f"{self.annotation_files['train']}: {length} images are fewer than {replicas} processes times "
                f"batch_size={self.batch_size}; lower one of them."
            )
        return self._training_loader(self.train_set, sampler)

    def picture_batch(self, picture: Tensor) -> dict:
        """A picture, uint8 (3, h, w), as the one sample of an evaluation batch, without annotations."""
        return self.collate([self.evaluation_transform(picture, unannotated_target(picture))])
