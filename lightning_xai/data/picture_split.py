"""A split of new pictures with graphs: what is in it, and computing the features that are missing."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lightning_xai.data.feature_folder import FeatureFolder
from lightning_xai.data.graph_pictures import GraphPicture, graph_ids, graph_picture, pictures_by_id
from lightning_xai.data.picture_file import UnreadablePicture, decode_picture, read_bytes
from lightning_xai.data.scene_graph_files import Sample
from lightning_xai.data.torchvision_features import TorchvisionFeatures

READ_AHEAD = 4  # pictures that are decoded while the networks work
DECODERS = 2


@dataclass
class PictureSplit:
    """The pictures of a split by their ids, in its order, and what is to be said of it.

    names: what its list calls each picture; listed: its samples in the order of a list that was there; faults: a
    sentence on each picture or region that cannot be used, which are not among `pictures`; notes: what else a user
    should know.
    """

    name: str
    pictures: dict[str, GraphPicture] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    listed: list[Sample] | None = None
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def drop(self, picture: GraphPicture, fault: str) -> None:
        """Do without a picture because of what a sentence says."""
        del self.pictures[picture.image_id]
        self.faults.append(fault)

    def file_names(self) -> list[str]:
        return [self.names[image_id] for image_id in self.pictures]

    def samples(self) -> list[Sample]:
        """(image id, region id) of what can be used."""
        found = [(image_id, region) for image_id, picture in self.pictures.items() for region in picture.regions]
        if self.listed is None:
            return found
        usable = set(found)
        return [sample for sample in self.listed if sample in usable]

    def phrases(self) -> list[str]:
        return [phrase for picture in self.pictures.values() for phrase in picture.phrases]


def picture_split(
    folder: FeatureFolder,
    name: str,
    pictures: str | os.PathLike,
    graphs: str | os.PathLike,
    inclusive: bool,
    relist: bool = False,
) -> PictureSplit:
    """What belongs to a split: what its lists in `folder` say, or where it has none (or with `relist`) all graphs.

    Raises FileNotFoundError for a folder without pictures or graphs, ValueError for two pictures of one id.
    """
    there, described = pictures_by_id(pictures), graph_ids(graphs)
    names, samples = (None, None) if relist else folder.listed(name)
    regions: dict[str, list[str]] | None = None
    if samples is not None:
        regions = {}
        for image_id, region in samples:
            regions.setdefault(image_id, []).append(region)
    if names is not None:
        named = {file.split(".")[0]: file for file in names}
    else:
        ids = described if regions is None else list(regions)
        named = {image_id: there[image_id].name if image_id in there else image_id for image_id in ids}
    split = PictureSplit(name, names=named, listed=samples)
    for image_id in named:
        wanted = None if regions is None else regions.get(image_id, [])
        picture, faults = graph_picture(image_id, graphs, there, inclusive, wanted)
        split.faults += faults
        if picture is not None:
            split.pictures[image_id] = picture
    if names is not None or samples is not None:
        beyond = sum(image_id not in named for image_id in described)
        more = f"; {beyond} other graphs are not in it (--relist takes them all)" if beyond else ""
        split.notes.append(f"split {name!r} is as listed in {folder.annotations}{more}")
    with_graph = set(described)
    if alone := [file for image_id, file in there.items() if image_id not in with_graph]:
        split.notes.append(
            f"{len(alone)} of {len(there)} pictures have no graph and are left alone, such as {alone[0]}"
        )
    return split


class Task(NamedTuple):
    """A picture whose own feature is missing, or features of some of its boxes."""

    picture: GraphPicture
    image: bool
    boxes: bool


def missing_features(split: PictureSplit, folder: FeatureFolder) -> list[Task]:
    """What is to be computed; a picture with a box outside of it, or that is none, is dropped from the split."""
    tasks = []
    for picture in list(split.pictures.values()):
        image = not folder.has_image(picture.image_id)
        boxes = len(folder.missing_boxes(picture.image_id, picture.boxes)) > 0
        if image or boxes:
            try:
                picture.check_boxes()
            except ValueError as error:
                split.drop(picture, _fault(picture, error))
                continue
            tasks.append(Task(picture, image, boxes))
    return tasks


def _fault(picture: GraphPicture, error: ValueError) -> str:
    return str(error) if isinstance(error, UnreadablePicture) else f"{picture.file}: {error}"


def keep_regions(split: PictureSplit, folder: FeatureFolder, graphs: str | os.PathLike) -> None:
    """Copy the files of regions to their place; a picture of which another one is there is dropped from the split."""
    for picture in list(split.pictures.values()):
        try:
            folder.keep_regions(graphs, picture.image_id)
        except ValueError as error:
            split.drop(picture, str(error))


class Computed(NamedTuple):
    """Features of how many pictures, of how many boxes of them, and seconds."""

    pictures: int
    boxes: int
    seconds: float


def compute_features(
    tasks: list[Task],
    split: PictureSplit,
    folder: FeatureFolder,
    networks: TorchvisionFeatures,
    progress: Callable[[int, float], None] = lambda done, seconds: None,
) -> Computed:
    """Compute what is missing; `progress` hears of each picture. One that cannot be read is dropped from the split."""
    pictures = boxes = 0
    begun = time.perf_counter()
    for number, (task, pixels) in enumerate(_decoded(tasks), 1):
        try:
            boxes += _compute(task, pixels(), folder, networks)
            pictures += 1
        except ValueError as error:
            split.drop(task.picture, _fault(task.picture, error))
        progress(number, time.perf_counter() - begun)
    return Computed(pictures, boxes, time.perf_counter() - begun)


def _decoded(tasks: Iterable[Task]) -> Iterator[tuple[Task, Callable[[], Tensor]]]:
    """Each task with a function that gives its picture (or raises), some being decoded ahead."""

    def decode(file: Path) -> Tensor:
        return decode_picture(read_bytes(file), file)

    ahead: deque[tuple[Task, Future[Tensor]]] = deque()
    with ThreadPoolExecutor(DECODERS) as decoders:
        for task in tasks:
            ahead.append((task, decoders.submit(decode, task.picture.file)))
            if len(ahead) > READ_AHEAD:
                first, pixels = ahead.popleft()
                yield first, pixels.result
        while ahead:
            first, pixels = ahead.popleft()
            yield first, pixels.result


def _compute(task: Task, pixels: Tensor, folder: FeatureFolder, networks: TorchvisionFeatures) -> int:
    """Compute and keep what a task asks for; the number of boxes."""
    picture = task.picture
    if task.image:
        folder.add_image(picture.image_id, networks.image_features(pixels))
    if not task.boxes:
        return 0
    missing = folder.missing_boxes(picture.image_id, picture.boxes)
    features = networks.box_features(pixels, picture.shown_boxes(missing))
    folder.add_boxes(picture.image_id, missing, features, (pixels.shape[1], pixels.shape[2]))
    return len(missing)
