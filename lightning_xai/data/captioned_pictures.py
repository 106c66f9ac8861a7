"""Pictures with captions in COCO's layout, as pairs of a picture and a text."""

import json
import os
from pathlib import Path
from typing import Any

from lightning_xai.data.detection_transforms import Draws, sample_seed
from lightning_xai.data.evaluation_resize import CropResize
from lightning_xai.data.image_text_module import ImageTextModule, Pair
from lightning_xai.data.picture_file import decode_picture, read_bytes
from lightning_xai.data.picture_set import PictureSet


class CaptionedPictures(PictureSet):
    """The pictures of a folder that an annotation file has captions of, by image id.

    Evaluation takes a picture's first caption; training draws one from (seed, epoch, index). `index` is the image id.
    Unreadable pictures: see `PictureSet`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        annotations: str | os.PathLike,
        transform: CropResize,
        train: bool = False,
        seed: int = 0,
        max_bad_images: int | float = 0.01,
    ):
        self.folder, self.transform, self.train, self.seed = Path(folder), transform, train, seed
        self.entries = read_captions(Path(annotations))
        missing = [name for _, name, _ in self.entries if not (self.folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self.entries)} pictures of {annotations} are not in {folder} (first: "
                f"{missing[0]!r}); add them, or name the right folder."
            )
        super().__init__(len(self.entries), str(folder), max_bad_images)

    def path(self, index: int) -> Path:
        return self.folder / self.entries[index][1]

    def load(self, index: int) -> tuple[Any, dict[str, Any]]:
        identity, _, texts = self.entries[index]
        path = self.path(index)
        return decode_picture(read_bytes(path), path), {"text": texts[0], "texts": texts, "index": identity}

    def __getitem__(self, key: int | tuple[int, int]) -> Pair:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, target = self.load_readable(index)
        image, target = self.transform(image, target)
        if self.train:
            target["text"] = Draws(sample_seed(self.seed, epoch, index)).choice(target["texts"])
        return image, target


def read_captions(file: Path) -> list[tuple[int, str, tuple[str, ...]]]:
    """(image id, file name, captions) of each image that has any, by id, from a file in COCO's caption layout.

    Raises FileNotFoundError, or ValueError for a file that is no such thing.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; give one in the layout of captions_val2017.json.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        said: dict[int, list[str]] = {}
        for entry in content["annotations"]:
            text = str(entry["caption"]).strip()
            if text:
                said.setdefault(int(entry["image_id"]), []).append(text)
        names = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: no captions in COCO's layout, which has images with id and file_name, and annotations with "
            f"image_id and caption ({type(error).__name__}: {error})."
        ) from error
    found = [(identity, names[identity], tuple(said[identity])) for identity in sorted(names) if identity in said]
    if not found:
        raise ValueError(f"{file}: none of its {len(names)} images has a caption.")
    return found


class CaptionedPicturesModule(ImageTextModule):
    """COCO 2017's captions and everything laid out like it.

    Args:
        root: Folder with `train2017/`, `val2017/` and `annotations/captions_{train,val}2017.json`.
        train_folder, train_annotations, val_folder, val_annotations: Where these are when not in `root`.
        image_size, batch_size, eval_batch_size, num_workers, prefetch_factor, seed: See `ImageTextModule`.
        max_bad_images: See `PictureSet`.
    """

    def __init__(
        self,
        root: str | os.PathLike | None = None,
        train_folder: str | os.PathLike | None = None,
        train_annotations: str | os.PathLike | None = None,
        val_folder: str | os.PathLike | None = None,
        val_annotations: str | os.PathLike | None = None,
        image_size: int = 224,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        prefetch_factor: int = 2,
        max_bad_images: int | float = 0.01,
        seed: int = 0,
    ):
        super().__init__(image_size, batch_size, eval_batch_size, num_workers, prefetch_factor, seed)
        self.max_bad_images = max_bad_images
        self.places: dict[str, tuple[Path | None, Path | None]] = {}
        for part, folder, file in (("train", train_folder, train_annotations), ("val", val_folder, val_annotations)):
            usual = None if root is None else Path(root)
            self.places[part] = (
                Path(folder) if folder else usual and usual / f"{part}2017",
                Path(file) if file else usual and usual / "annotations" / f"captions_{part}2017.json",
            )
        self._sets: dict[str, CaptionedPictures] = {}

    def dataset(self, split: str) -> CaptionedPictures:
        part = "train" if split == "train" else "val"
        if part not in self._sets:
            folder, file = self.places[part]
            if folder is None or file is None:
                raise ValueError(f"neither root nor {part}_folder and {part}_annotations are given.")
            self._sets[part] = CaptionedPictures(
                folder, file, self.evaluation_transform, part == "train", self.seed, self.max_bad_images
            )
        return self._sets[part]
