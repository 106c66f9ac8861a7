"""Scene graphs of images with their captions: MSCOCO and Visual Genome as asg2cap laid them out."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from lightning_xai.data.abstract_graph import MAX_NODES, AbstractGraph, graph_nodes
from lightning_xai.data.feature_folder import ORIGIN, other_origin
from lightning_xai.data.node_features import BoxFeatures, ImageFeatures
from lightning_xai.data.region_features import RegionFeatures
from lightning_xai.data.scene_graph import SceneGraphs, collate_scene_graphs, scene_graph_sample
from lightning_xai.data.scene_graph_files import read_references
from lightning_xai.data.split_loaders import SplitLoaders
from lightning_xai.data.vocabulary import Vocabulary


class CaptionedGraphs(SplitLoaders):
    """Loaders over data sets of `scene_graph_sample`, see `SplitLoaders`, and what captions are compared with.

    `new_pictures` computes features of pictures that are in no data set, where a subclass has it.
    """

    vocabulary: Vocabulary
    max_nodes: int = MAX_NODES
    new_pictures: RegionFeatures | None = None

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        prefetch_factor: int = 2,
        seed: int = 0,
    ):
        super().__init__(batch_size, eval_batch_size, num_workers, prefetch_factor, seed)

    @abstractmethod
    def references(self, split: str) -> dict[str, list[str]]:
        """What a caption of each sample of a split is compared with, by the sample's name."""

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Samples as a batch, see `collate_scene_graphs`."""
        return collate_scene_graphs(samples)

    def graph_batch(self, picture: Tensor, graph: AbstractGraph) -> dict[str, Any]:
        """A batch of one, see `collate`, of a new picture and a graph that somebody drew on it.

        picture: uint8 (3, h, w); the graph's boxes are xyxy in pixels, x2 and y2 behind the last pixel whatever the
        data set's files say. Raises TypeError without `new_pictures`, and ValueError for a box without area in the
        picture or a graph that `graph_nodes` refuses.
        """
        if self.new_pictures is None:
            raise TypeError(
                f"{type(self).__name__} only has features of its own pictures: give it new_pictures, such as "
                "TorchvisionFeatures with the weights that its features were computed with."
            )
        nodes = graph_nodes(graph, self.max_nodes)
        boxes, rows = np.unique(np.array(nodes.boxes, np.float32), axis=0, return_inverse=True)
        image_feature, features = self.new_pictures.features(picture, boxes)
        caption = self.vocabulary.encode(graph.phrase, len(graph.phrase.split()) + 2)
        node_features = features[rows.reshape(-1)]
        return self.collate(
            [scene_graph_sample(0, "new", "0", graph.phrase, caption, nodes, image_feature, node_features)]
        )


class SceneGraphModule(CaptionedGraphs):
    """MSCOCO's or Visual Genome's scene graphs with the published features.

    Args:
        root: Folder with `annotation/controllable/` (`regionfiles/`, `public_split/`, `int2word.npy`, `word2int.json`),
            `ordered_feature/MP/` and `ordered_feature/SA/`.
        annotations, image_features, box_features: Where these are when not in `root`; the last is the folder of
            `<image id>.jpg.hdf5`.
        image_feature_name, box_feature_name: The kind of features that is taken of those in `root`.
        train_split, val_split, test_split: Names of splits in file names; EGA is tested on `val_sub`, and with a
            classifier repaired by debug sets on `val_sub_opt`.
        boxes: "inclusive" if boxes end at their last pixel (MSCOCO), "exclusive" if behind it (Visual Genome).
        max_nodes, max_words: See `SceneGraphs`; 25 words for MSCOCO, 15 for Visual Genome.
        pictures: Folder of the pictures themselves, which are needed only to be drawn upon.
        new_pictures: Computes features of other pictures, see `graph_batch`; they must be of the same networks.
        batch_size, eval_batch_size, num_workers, prefetch_factor, seed: See `CaptionedGraphs`.
    """

    def __init__(
        self,
        root: str | os.PathLike | None = None,
        annotations: str | os.PathLike | None = None,
        image_features: str | os.PathLike | None = None,
        box_features: str | os.PathLike | None = None,
        image_feature_name: str = "resnet101.ctrl",
        box_feature_name: str = "X_101_32x8d",
        train_split: str = "trn",
        val_split: str = "val",
        test_split: str = "tst",
        boxes: Literal["inclusive", "exclusive"] = "inclusive",
        max_nodes: int = MAX_NODES,
        max_words: int = 25,
        pictures: str | os.PathLike | None = None,
        new_pictures: RegionFeatures | None = None,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        prefetch_factor: int = 2,
        seed: int = 0,
    ):
        super().__init__(batch_size, eval_batch_size, num_workers, prefetch_factor, seed)
        if boxes not in ("inclusive", "exclusive"):
            raise ValueError(f'boxes is "inclusive" (they end at their last pixel) or "exclusive", not {boxes!r}.')
        usual = None if root is None else Path(root)
        features = usual and usual / "ordered_feature"
        self.annotations = _place(annotations, usual and usual / "annotation" / "controllable", "annotations")
        self.image_features = _place(
            image_features, features and features / "MP" / image_feature_name, "image_features"
        )
        self.box_features = BoxFeatures(
            _place(box_features, features and features / "SA" / box_feature_name / "objrels", "box_features")
        )
        self.splits = {"train": train_split, "val": val_split, "test": test_split, "predict": test_split}
        self.inclusive, self.max_nodes, self.max_words = boxes == "inclusive", max_nodes, max_words
        self.pictures = None if pictures is None else Path(pictures)
        self.new_pictures = new_pictures
        self._sets: dict[str, SceneGraphs] = {}
        self._vocabulary: Vocabulary | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of `int2word.npy` and `word2int.json`, which must agree where both are there."""
        if self._vocabulary is None:
            words, numbers = self.annotations / "int2word.npy", self.annotations / "word2int.json"
            if numbers.is_file() and not words.is_file():
                self._vocabulary = Vocabulary.read_json(numbers)
            else:
                self._vocabulary = Vocabulary.read(words, numbers if numbers.is_file() else None)
        return self._vocabulary

    def dataset(self, split: str) -> SceneGraphs:
        name = self.splits[split]
        if name not in self._sets:
            self._sets[name] = SceneGraphs(
                self.annotations / "regionfiles" / f"{name}_names.npy",
                self.annotations / "regionfiles",
                ImageFeatures(
                    self.annotations / "public_split" / f"{name}_names.npy", self.image_features / f"{name}_ft.npy"
                ),
                self.box_features,
                self.vocabulary,
                self.max_nodes,
                self.max_words,
                self.inclusive,
            )
        return self._sets[name]

    def graph_batch(self, picture: Tensor, graph: AbstractGraph) -> dict[str, Any]:
        """See `CaptionedGraphs`; raises ValueError also where the files say that other weights made their features."""
        for folder, part in ((self.image_features, "image_origin"), (self.box_features.folder.parent, "box_origin")):
            origin = getattr(self.new_pictures, part, None)
            differing = (folder / ORIGIN).is_file() and origin and other_origin(folder, origin)
            if differing:
                raise ValueError(f"{differing}; a captioner must read new pictures with what it was trained on.")
        return super().graph_batch(picture, graph)

    def references(self, split: str) -> dict[str, list[str]]:
        """From `cleaned_<split>_region_descriptions.json` if it is among the annotations, else the regions' phrases."""
        dataset = self.dataset(split)
        cleaned = self.annotations / f"cleaned_{self.splits[split]}_region_descriptions.json"
        return read_references(cleaned, dataset.samples) if cleaned.is_file() else dataset.references()

    def picture(self, split: str, index: int) -> Path | None:
        """The picture's file that sample `index` of a split is of; None without a folder of pictures."""
        return self.pictures and self.pictures / self.dataset(split).picture_name(index)


def _place(given: str | os.PathLike | None, usual: Path | None, name: str) -> Path:
    place = usual if given is None else Path(given)
    if place is None:
        raise ValueError(f"neither root nor {name} is given, so there is no place to read {name} from.")
    if not place.is_dir():
        raise FileNotFoundError(f"{place}: no such folder; name the {name} of the published layout.")
    return place
