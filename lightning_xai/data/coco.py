"""COCO 2017 and everything laid out like it, as a LightningDataModule."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_xai.data.coco_annotations import CocoAnnotations, read_annotations, read_categories, unannotated
from lightning_xai.data.coco_detection import CocoDetection, find_missing, unannotated_target
from lightning_xai.data.detection_batch import collate_detection
from lightning_xai.data.detection_loader import detection_loader
from lightning_xai.data.detection_transforms import SCALES, EvaluationTransform, TrainingTransform
from lightning_xai.data.picture_file import MAX_PIXELS, list_pictures
from lightning_xai.data.samplers import (
    EvaluationSampler,
    TrainingSampler,
    contiguous_order,
    node_order,
    resume_position,
    strided_order,
)

log = logging.getLogger(__name__)


class CocoDataModule(pl.LightningDataModule):
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
        super().__init__()
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
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size or batch_size
        self.num_workers = num_workers
        self.val_num_workers = num_workers if val_num_workers is None else val_num_workers
        self.prefetch_factor = prefetch_factor
        self.collate = partial(collate_detection, pad_to_multiple=pad_to_multiple)
        self.cache_mode = cache_mode
        self.sample_order = sample_order
        self.masks = masks
        self.on_missing = on_missing
        self.seed = seed
        self.training_transform = TrainingTransform(
            scales, max_size, crop_scales, crop_range, flip_probability, crop_probability
        )
        self.evaluation_transform = EvaluationTransform(max(scales), max_size)
        self._reading = {
            "max_bad_images": max_bad_images,
            "max_pixels": max_pixels,
            "apply_exif_orientation": apply_exif_orientation,
        }
        self.train_set: CocoDetection | None = None
        self.val_set: CocoDetection | None = None
        self.predict_set: CocoDetection | None = None
        self._news_of_epoch = 0

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
            _, _, local_rank, local_size = self._process()
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

    def _say(self, line: str) -> None:
        # Neither Lightning's logger, which the command line silences, nor the standard output, which is for results.
        if self._process()[0] == 0:
            print(line, file=sys.stderr, flush=True)

    def _process(self) -> tuple[int, int, int, int]:
        """Rank, number of processes, rank on this node, number of processes on this node."""
        trainer = self.trainer
        if trainer is None:
            return 0, 1, 0, 1
        return trainer.global_rank, trainer.world_size, trainer.local_rank, trainer.num_devices

    def train_dataloader(self) -> DataLoader:
        rank, replicas, local_rank, local_size = self._process()
        length = len(self.train_set)
        if self.cache_mode:
            order = partial(
                node_order, length, rank=rank, replicas=replicas, local_rank=local_rank, local_size=local_size
            )
        else:
            chosen = {"strided": strided_order, "contiguous": contiguous_order}[self.sample_order]
            order = partial(chosen, length, rank=rank, replicas=replicas)
        epoch, batch = resume_position(self.trainer)
        if batch:  # Lightning warns of every loader without a state of its own, while this one starts where it should
            warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        sampler = TrainingSampler(partial(order, seed=self.seed), start=(epoch, batch * self.batch_size))
        if len(sampler) < self.batch_size:
            raise ValueError(
                f"{self.annotation_files['train']}: {length} images are fewer than {replicas} processes times "
                f"batch_size={self.batch_size}; lower one of them."
            )
        return self._loader(self.train_set, sampler, self.batch_size, self.num_workers, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.val_set)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.val_set)

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.predict_set)

    def picture_batch(self, picture: Tensor) -> dict:
        """A picture, uint8 (3, h, w), as the one sample of an evaluation batch, without annotations."""
        return self.collate([self.evaluation_transform(picture, unannotated_target(picture))])

    def _evaluation_sampler(self, dataset: CocoDetection) -> EvaluationSampler:
        rank, replicas, _, _ = self._process()
        return EvaluationSampler(len(dataset), self.val_batch_size, rank, replicas)

    def _evaluation_loader(self, dataset: CocoDetection) -> DataLoader:
        return self._loader(dataset, self._evaluation_sampler(dataset), self.val_batch_size, self.val_num_workers)

    def _loader(self, dataset, sampler, batch_size: int, num_workers: int, drop_last: bool = False) -> DataLoader:
        return detection_loader(
            dataset, sampler, batch_size, num_workers, self.collate, self.trainer, drop_last, self.prefetch_factor
        )

    def on_before_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        if self.trainer is not None and self.trainer.current_epoch != self._news_of_epoch:
            self._news_of_epoch = self.trainer.current_epoch
            self._report()
        return batch

    def teardown(self, stage: str) -> None:
        self._report()

    def _report(self) -> None:
        """Say which pictures were found faulty since the last time; each process knows those that it was given."""
        for dataset in (self.train_set, self.val_set, self.predict_set):
            if dataset is not None and (news := dataset.news()):
                log.warning(f"{dataset.annotations.file}: {news}")
