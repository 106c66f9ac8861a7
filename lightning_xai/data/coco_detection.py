"""Images of a COCO set with their boxes, one sample at a time, whatever the state of the files."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_xai.data.coco_annotations import CocoAnnotations
from lightning_xai.data.coco_outlines import outline_masks
from lightning_xai.data.detection_transforms import Draws, Sample, Target, sample_seed
from lightning_xai.data.image_cache import ImageCache
from lightning_xai.data.picture_faults import OTHER_SIZE
from lightning_xai.data.picture_file import MAX_PIXELS, decode_picture, read_bytes
from lightning_xai.data.picture_set import PictureSet


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(N, 4) corner and sides to two corners."""
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


def detection_target(boxes: Tensor, labels: Tensor, area: Tensor, iscrowd: Tensor, shape: tuple[int, int]) -> Target:
    """What a detector is trained on: boxes (N, 4) xywh become xyxy clipped to the image; crowds and empty boxes go.

    Source: Deformable DETR, `ConvertCocoPolysToMask`.
    """
    height, width = shape
    corners = xywh_to_xyxy(boxes).reshape(-1, 2, 2).clamp(min=0)
    corners = torch.minimum(corners, torch.tensor([width, height], dtype=torch.float32))
    kept = (corners[:, 1] > corners[:, 0]).all(dim=1) & (iscrowd == 0)
    return {
        "boxes": corners.flatten(1)[kept],
        "labels": labels[kept],
        "area": area[kept],
        "iscrowd": iscrowd[kept],
        "size": torch.tensor([height, width]),
        "orig_size": torch.tensor([height, width]),
    }


def unannotated_target(picture: Tensor) -> Target:
    """The target of a picture (3, h, w) of which nothing is known."""
    none = torch.zeros(0)
    return detection_target(none.view(0, 4), none.long(), none, none.long(), tuple(picture.shape[1:]))


class CocoDetection(PictureSet):
    """Samples (image uint8 (3, h, w), target) of the images of `annotations`, which lie in `folder`.

    An item is asked for by (epoch, index), or by index alone for epoch 0: the random numbers of its augmentation
    `transform(image, target, draws)` depend on `seed`, epoch and index only. `with_ground_truth` adds what an
    evaluation needs, in pixels of the file: all boxes with the crowds, unclipped, and the masks (G, h, w) where the
    outlines were read. An unreadable picture is replaced by
    the next readable one and noted in `faults`; more than `max_bad_images` of them (a fraction or a number) raise.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        annotations: CocoAnnotations,
        transform: Callable[[Tensor, Target, Draws], Sample],
        seed: int = 0,
        with_ground_truth: bool = False,
        max_bad_images: int | float = 0.01,
        max_pixels: int = MAX_PIXELS,
        apply_exif_orientation: bool = False,
    ):
        super().__init__(len(annotations), str(folder), max_bad_images)
        self.folder = Path(folder)
        self.annotations = annotations
        self.transform = transform
        self.seed = seed
        self.with_ground_truth = with_ground_truth
        self.max_pixels = max_pixels
        self.apply_exif_orientation = apply_exif_orientation
        self.cache: ImageCache | None = None

    @property
    def source(self) -> str:
        return str(self.annotations.file)

    def path(self, index: int) -> Path:
        return self.folder / str(self.annotations.file_names[index])

    def hold_in_memory(self, indices: list[int]) -> None:
        """Read these images' files now and keep their bytes; others stay on the disk."""
        self.cache = ImageCache([self.path(index) for index in range(len(self))], indices)

    def load(self, index: int) -> Sample:
        """The picture and its target as they are, before any transform. Raises: UnreadablePicture."""
        path = self.path(index)
        data = self.cache.get(index) if self.cache is not None else None
        data = read_bytes(path) if data is None else data
        image = decode_picture(data, path, self.max_pixels, self.apply_exif_orientation)
        shape = (image.shape[1], image.shape[2])
        stated = tuple(self.annotations.shapes[index].tolist())
        if stated not in (shape, (0, 0)):
            self.faults.mark(index, OTHER_SIZE)
        boxes, labels, area, iscrowd = self.annotations.of_image(index)
        target = detection_target(boxes, labels, area, iscrowd, shape)
        target["image_id"] = torch.tensor(int(self.annotations.image_ids[index]))
        if self.with_ground_truth:
            target["ground_truth"] = {
                "boxes": xywh_to_xyxy(boxes),
                "labels": labels,
                "area": area,
                "iscrowd": iscrowd,
            }
            if self.annotations.outlines is not None:
                outlines = self.annotations.outlines_of_image(index)
                target["ground_truth"]["masks"] = outline_masks(outlines, shape, f"{self.annotations.file}: {path}")
        return image, target

    def boxes(self, index: int) -> tuple[Tensor, tuple[int, int]]:
        """Boxes (R, 4) xyxy in pixels that a detector is trained on in picture `index`, and its (h, w).

        The size is the stated one. Only where the annotations state none the picture is read, and where it is
        unreadable these are the boxes of the one put in its place. Raises: UnreadablePicture, as `load_readable`.
        """
        height, width = self.annotations.shapes[index].tolist()
        if height and width:
            target = detection_target(*self.annotations.of_image(index), (height, width))
        else:
            _, target = self.load_readable(index)
            height, width = target["size"].tolist()
        return target["boxes"], (height, width)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, target = self.load_readable(index)
        return self.transform(image, target, Draws(sample_seed(self.seed, epoch, index)))


def find_missing(folder: str | os.PathLike, annotations: CocoAnnotations) -> np.ndarray:
    """(N,) bool: the images that are not in their folder, found by listing each folder once."""
    listings: dict[Path, set[str]] = {}
    missing = np.zeros(len(annotations), dtype=bool)
    for i, name in enumerate(annotations.file_names.tolist()):
        path = Path(folder) / name
        if path.parent not in listings:
            listings[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        missing[i] = path.name not in listings[path.parent]
    return missing
