"""Features that are being computed, in the published layout: what is done stays done, and all are of one kind."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_xai.data.node_features import (
    BoxFeatures,
    ImageFeatures,
    complete_file,
    write_array,
    write_box_features,
)
from lightning_xai.data.plain_arrays import read_array
from lightning_xai.data.scene_graph_files import Sample, read_regions, read_samples, region_file
from lightning_xai.data.vocabulary import Vocabulary, as_strings

ORIGIN = "features.json"  # what the features beside it were computed with


class FeatureFolder:
    """The files of one kind of image features and one of box features below the root of the published layout.

    Features of a picture are on the disk as soon as they are added; `finish` puts those of a split in their places,
    from where `SceneGraphModule(root)` reads them. Every file appears when it is complete.
    """

    def __init__(self, root: str | os.PathLike, image_feature_name: str, box_feature_name: str):
        root = Path(root)
        self.annotations = root / "annotation" / "controllable"
        self.regions = self.annotations / "regionfiles"
        self.image_folder = root / "ordered_feature" / "MP" / image_feature_name
        self.box_folder = root / "ordered_feature" / "SA" / box_feature_name
        self.boxes = self.box_folder / "objrels"
        self._known: dict[str, tuple[Path, int]] | None = None

    def claim(self, image_origin: Mapping[str, Any], box_origin: Mapping[str, Any]) -> None:
        """Note what the features are computed with.

        Raises ValueError where there are features already which were computed with something else.
        """
        claims = ((self.image_folder, image_origin), (self.box_folder, box_origin))
        for folder, origin in claims:
            if any(file.is_file() and file.name != ORIGIN for file in folder.rglob("*")):
                if not (folder / ORIGIN).is_file():
                    raise ValueError(
                        f"{folder} holds features that came from elsewhere; give the new ones another name."
                    )
                if differing := other_origin(folder, origin):
                    raise ValueError(f"{differing}; give the new ones another name, or remove the folder.")
        for folder, origin in claims:
            _write_text(folder / ORIGIN, json.dumps(dict(origin), indent=1) + "\n")

    # the features of single pictures

    def has_image(self, image_id: str) -> bool:
        return self._vector_file(image_id).is_file() or image_id in self._rows()

    def add_image(self, image_id: str, feature: np.ndarray) -> None:
        """Keep a picture's own feature (C_mp,)."""
        write_array(self._vector_file(image_id), np.asarray(feature, np.float32))

    def image(self, image_id: str) -> np.ndarray:
        """The feature (C_mp,) that was added now or before. Raises LookupError where none was."""
        if self._vector_file(image_id).is_file():
            return read_array(self._vector_file(image_id))
        if image_id not in self._rows():
            raise LookupError(f"{self.image_folder} has no feature of image {image_id!r}.")
        file, row = self._rows()[image_id]
        return np.array(read_array(file, memory_mapped=True)[row], np.float32)

    def missing_boxes(self, image_id: str, boxes: np.ndarray) -> np.ndarray:
        """Those of the boxes (R, 4) of a picture that have no feature yet."""
        try:
            there = set(self._readable(image_id))
        except ValueError:  # a damaged file is of no use
            there = set()
        return np.array([box for box in boxes.tolist() if tuple(box) not in there], np.int64).reshape(-1, 4)

    def add_boxes(self, image_id: str, boxes: np.ndarray, features: np.ndarray, size: tuple[int, int]) -> None:
        """Keep features (R, C) of boxes (R, 4) of a picture of `size` (h, w), besides those that there are.

        Raises ValueError where those are of a picture of another size.
        """
        try:
            before = self._readable(image_id)
        except ValueError:
            before = ()
        if before:
            stored = BoxFeatures(self.boxes, open_files=1)
            old, old_size = stored.vectors(image_id, before), stored.size(image_id)
            stored.close()
            if old_size != size:
                raise ValueError(
                    f"{stored.path(image_id)} is of a picture of {old_size[1]} x {old_size[0]} pixels (w x h), not of "
                    f"{size[1]} x {size[0]}; remove it if the picture was replaced."
                )
            boxes, features = np.concatenate([np.array(before), boxes]), np.concatenate([old, features])
        write_box_features(self.boxes, image_id, boxes, features, size)

    def _readable(self, image_id: str) -> tuple:
        stored = BoxFeatures(self.boxes, open_files=1)
        corners = stored.corners(image_id)
        stored.close()
        return corners

    def _vector_file(self, image_id: str) -> Path:
        return self.image_folder / "vectors" / f"{image_id}.npy"

    def _rows(self) -> dict[str, tuple[Path, int]]:
        """Array and row of each image of the splits that are complete."""
        if self._known is None:
            self._known = {}
            for file in sorted(self.image_folder.glob("*_ft.npy")):
                names = self.names_file(file.name.removesuffix("_ft.npy"))
                try:
                    rows = ImageFeatures(names, file).row
                except (FileNotFoundError, ValueError):  # of another list: nobody knows whose rows these are
                    continue
                self._known.update((image_id, (file, row)) for image_id, row in rows.items())
        return self._known

    # the lists of splits

    def names_file(self, split: str) -> Path:
        return self.annotations / "public_split" / f"{split}_names.npy"

    def samples_file(self, split: str) -> Path:
        return self.regions / f"{split}_names.npy"

    def listed(self, split: str) -> tuple[list[str] | None, list[Sample] | None]:
        """The names of pictures, and the (image id, region id), that a split has; None where there is no list."""
        names, samples = self.names_file(split), self.samples_file(split)
        return (
            list(as_strings(read_array(names))) if names.is_file() else None,
            read_samples(samples) if samples.is_file() else None,
        )

    def check_names(self, split: str, names: Sequence[str]) -> None:
        """Raises ValueError where another kind of features is in the order of a list other than `names`."""
        arrays = self.image_folder.parent.glob(f"*/{split}_ft.npy")
        others = sorted(file for file in arrays if file.parent != self.image_folder)
        if others and self.listed(split)[0] != list(names):
            raise ValueError(
                f"{others[0]} is in the order of {self.names_file(split)}, which has other pictures than these "
                f"{len(names)}; give them a split of another name than {split!r}."
            )

    def finish(self, split: str, names: Sequence[str], samples: Sequence[Sample]) -> None:
        """Write a split's lists, and its array of image features in the order of `names`, of which `samples` are.

        Raises as `check_names`, and LookupError for a picture whose feature was not added.
        """
        self.check_names(split, names)
        ids = [name.split(".")[0] for name in names]
        array, listed = self.image_folder / f"{split}_ft.npy", self.names_file(split)
        rows = np.stack([self.image(image_id) for image_id in ids])
        if array.is_file() and self.listed(split)[0] != list(names):
            # an array must never stand beside a list that is not its own, whenever this ends
            for image_id, (file, _) in self._rows().items():
                if file == array and not self._vector_file(image_id).is_file():
                    self.add_image(image_id, self.image(image_id))
            array.unlink()
        write_array(listed, np.array(list(names)))
        write_array(self.samples_file(split), np.array(list(samples)).reshape(-1, 2))
        write_array(array, rows)
        self._known = None
        for image_id in ids:
            self._vector_file(image_id).unlink(missing_ok=True)
        vectors = self.image_folder / "vectors"
        if vectors.is_dir() and not any(vectors.iterdir()):
            vectors.rmdir()

    def keep_regions(self, graphs: str | os.PathLike, image_id: str) -> None:
        """Copy an image's file of regions to its place, where it may replace one that had fewer of the same regions.

        Raises ValueError where another one is there.
        """
        source, target = region_file(graphs, image_id), region_file(self.regions, image_id)
        text = source.read_bytes()
        if target.is_file() and target.read_bytes() == text:
            return
        if target.is_file():
            before, now = read_regions(target), read_regions(source)
            changed = [region for region, entry in before.items() if now.get(region) != entry]
            if changed:
                raise ValueError(
                    f"{source} has another region {changed[0]!r}, or none, than {target}, which splits may list; "
                    "remove the outdated file."
                )
        target.parent.mkdir(parents=True, exist_ok=True)
        with complete_file(target) as partial:
            partial.write_bytes(text)

    # the words

    def vocabulary(self) -> Vocabulary | None:
        """The words that there are; None where there are none yet. Raises ValueError where two files differ."""
        words, numbers = self.annotations / "int2word.npy", self.annotations / "word2int.json"
        if words.is_file():
            return Vocabulary.read(words, numbers if numbers.is_file() else None)
        return Vocabulary.read_json(numbers) if numbers.is_file() else None

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raises ValueError where there are other words, whose numbers a captioner may have learned."""
        there = self.vocabulary()
        if there is not None and there.words != vocabulary.words:
            raise ValueError(
                f"{self.annotations} has another vocabulary of {len(there)} words, not these {len(vocabulary)}; remove "
                "its int2word.npy and word2int.json if no captioner needs them."
            )

    def write_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raises as `check_vocabulary`."""
        self.check_vocabulary(vocabulary)
        write_array(self.annotations / "int2word.npy", np.array(vocabulary.words))
        _write_text(self.annotations / "word2int.json", json.dumps(vocabulary.number))


def other_origin(folder: Path, origin: Mapping[str, Any]) -> str | None:
    """What else than `origin` the features in a folder were computed with, as the beginning of a sentence.

    None where it is the same, as far as both say; a file of weights of the same content may have another name.
    """
    before = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    for key in origin:
        if key != "weights" and before.get(key, origin[key]) != origin[key]:
            names = before.get("weights"), origin.get("weights")
            return f"{folder} holds features with {key} {before[key]!r} ({names[0]}), not {origin[key]!r} ({names[1]})"
    return None


def words_of(phrases: Iterable[str], min_count: int = 1) -> Vocabulary:
    """The words, split at blanks, that come at least `min_count` times in the phrases, most frequent first."""
    counts = Counter(word for phrase in phrases for word in phrase.split())
    return Vocabulary.of_words(sorted((w for w in counts if counts[w] >= min_count), key=lambda w: (-counts[w], w)))


def read_words(file: str | os.PathLike) -> Vocabulary:
    """The vocabulary in an `int2word.npy` or a `word2int.json`. Raises FileNotFoundError or ValueError."""
    return Vocabulary.read_json(file) if Path(file).suffix == ".json" else Vocabulary.read(file)


def _write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(file) as partial:
        partial.write_text(text, encoding="utf-8")
