"""Images from prompts: made elsewhere and looked up, or made here by a text-to-image model."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

NAMED_AT_MOST = 3


class ImageGenerator(ABC):
    """Makes images from prompts; each image depends on its own prompt, negative prompt, seed and size alone."""

    @property
    @abstractmethod
    def provider(self) -> str:
        """What a manifest names as the maker of its images."""

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative_prompts: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
    ) -> list[np.ndarray]:
        """One image (h, w, 3) uint8 RGB for each prompt.

        Args:
            seeds: one an image, from 0 to 2³² - 1.
            negative_prompts: what each image should not show, "" for nothing.
            size: (h, w) in pixels; None is the generator's own.
        """

    def check(self, prompts: Sequence[str], seeds: Sequence[int]) -> None:
        """Raise before anything is made if one of these images cannot be had."""
        return


class FolderImages(ImageGenerator):
    """Images that were made elsewhere: `folder` with an index of which prompt and seed made which file.

    The index has one JSON object a line with `prompt`, `seed` and `path` below the folder. The list of prompts that
    `lightning-xai debugset export-prompts` writes is such an index: an image saved under the `path` of its line is
    found.

    Args:
        folder: where the images lie.
        index: file with the lines; by default `<folder>/manifest.jsonl`.

    Raises:
        FileNotFoundError: folder or index does not exist.
    """

    def __init__(self, folder: str, index: str | None = None):
        self.folder = Path(folder)
        file = Path(index) if index is not None else self.folder / "manifest.jsonl"
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; give one with images and manifest.jsonl.")
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: no such file; it should say in one JSON object a line which `prompt` and `seed` made which "
                f"`path` below {folder}."
            )
        self.paths = _read_index(file)

    @property
    def provider(self) -> str:
        return "folder"

    def check(self, prompts: Sequence[str], seeds: Sequence[int]) -> None:
        missing = [
            f"{prompt!r} with seed {seed} "
            + (f"(file {self.paths[prompt, seed]})" if (prompt, seed) in self.paths else "(not in the index)")
            for prompt, seed in zip(prompts, seeds, strict=True)
            if not self.has(prompt, seed)
        ]
        if missing:
            raise FileNotFoundError(
                f"{self.folder}: {len(missing)} of {len(prompts)} images are missing: "
                + ", ".join(missing[:NAMED_AT_MOST])
                + (", ..." if len(missing) > NAMED_AT_MOST else "")
            )

    def has(self, prompt: str, seed: int) -> bool:
        """Whether the image of this prompt and seed is there."""
        path = self.paths.get((prompt, seed))
        return path is not None and (self.folder / path).is_file()

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative_prompts: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
    ) -> list[np.ndarray]:
        """The images as they lie in the folder, resized (bicubic) only where `size` asks for another one.

        Raises:
            FileNotFoundError: an image is missing.
            UnreadablePicture: a file is no picture.
        """
        self.check(prompts, seeds)
        return [self._read(self.folder / self.paths[key], size) for key in zip(prompts, seeds, strict=True)]

    @staticmethod
    def _read(file: Path, size: tuple[int, int] | None) -> np.ndarray:
        from lightning_xai.data.picture_file import decode_picture, read_bytes

        image = decode_picture(read_bytes(file), file).permute(1, 2, 0).numpy()
        if size is None or image.shape[:2] == tuple(size):
            return np.ascontiguousarray(image)
        return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _read_index(file: Path) -> dict[tuple[str, int], str]:
    paths: dict[tuple[str, int], str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            key, path = (values["prompt"], int(values["seed"])), os.fspath(values["path"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}, line {number}: should be a JSON object with prompt, seed and path ({error})."
            ) from None
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError(f"{file}, line {number}: path {path!r} should lie below the folder.")
        if paths.setdefault(key, path) != path:
            raise ValueError(f"{file}, line {number}: prompt {key[0]!r} with seed {key[1]} has a second file {path!r}.")
    return paths
