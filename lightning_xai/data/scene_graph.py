"""Scene graphs with captions as samples and batches of a captioner."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_xai.data.abstract_graph import MAX_NODES, GraphNodes, graph_nodes
from lightning_xai.data.named_words import words_of_names
from lightning_xai.data.node_features import BoxFeatures, ImageFeatures
from lightning_xai.data.scene_graph_files import read_region, read_samples, sample_name
from lightning_xai.data.vocabulary import EOS, Vocabulary

# What a network reads of a graph, and the axes along N nodes of each entry.
GRAPH_FIELDS = {
    "mp_fts": (),
    "attn_fts": (0,),
    "attn_masks": (0,),
    "node_types": (0,),
    "attr_order_idxs": (0,),
    "rel_edges": (1, 2),
    "flow_edges": (0, 1),
}


def graph_inputs(nodes: GraphNodes, image_feature: np.ndarray, node_features: np.ndarray) -> dict[str, Tensor]:
    """What a captioner reads of one graph.

    image_feature: (C_mp,); node_features: (N, C). Gives mp_fts (C_mp), attn_fts (N, C), attn_masks (N) bool, node_types
    and attr_order_idxs (N) int64, rel_edges (6, N, N) and flow_edges (N, N), see `GraphNodes`.
    """
    return {
        "mp_fts": torch.as_tensor(image_feature, dtype=torch.float32),
        "attn_fts": torch.as_tensor(node_features, dtype=torch.float32),
        "attn_masks": torch.ones(len(nodes), dtype=torch.bool),
        "node_types": torch.tensor(nodes.types),
        "attr_order_idxs": torch.tensor(nodes.orders),
        "rel_edges": torch.from_numpy(nodes.relation_matrices()),
        "flow_edges": torch.from_numpy(nodes.flow_matrix()),
    }


def collate_graphs(graphs: Sequence[dict[str, Tensor]], pad_nodes: int | None = None) -> dict[str, Tensor]:
    """B graphs of `graph_inputs` as one batch, padded with zeros to `pad_nodes` (default: to the largest)."""
    count = pad_nodes or max(len(graph["attn_masks"]) for graph in graphs)
    batch = {}
    for name, axes in GRAPH_FIELDS.items():
        first = graphs[0][name]
        shape = [count if axis in axes else size for axis, size in enumerate(first.shape)]
        batch[name] = first.new_zeros((len(graphs), *shape))
        for row, graph in zip(batch[name], graphs, strict=True):
            entry = graph[name]
            row[tuple(slice(size) for size in entry.shape)] = entry
    return batch


def collate_captions(captions: Sequence[Sequence[int]], pad_words: int | None = None) -> tuple[Tensor, Tensor]:
    """Numbers of words (B, T) int64, padded with EOS to `pad_words` (default: to the longest), and which are meant."""
    length = pad_words or max(map(len, captions))
    numbers = torch.full((len(captions), length), EOS)
    meant = torch.zeros(len(captions), length, dtype=torch.bool)
    for row, caption in enumerate(captions):
        numbers[row, : len(caption)] = torch.tensor(list(caption), dtype=torch.int64)
        meant[row, : len(caption)] = True
    return numbers, meant


def collate_scene_graphs(
    samples: Sequence[dict[str, Any]], pad_nodes: int | None = None, pad_words: int | None = None
) -> dict[str, Any]:
    """Samples of `scene_graph_sample` as a batch.

    graph: see `collate_graphs`; captions (B, T) int64 and caption_masks (B, T) bool; index (B,) int64; tuples of B:
    names, image_ids, region_ids, phrases, nodes (`GraphNodes`). Where all samples have them, word_nodes (B, T) int64:
    the node that each word of the caption speaks of, -1 for none.
    """
    captions, meant = collate_captions([sample["caption"] for sample in samples], pad_words)
    spoken = {}
    if all(sample.get("word_nodes") is not None for sample in samples):
        spoken["word_nodes"] = torch.full_like(captions, -1)
        for row, sample in zip(spoken["word_nodes"], samples, strict=True):
            row[: len(sample["word_nodes"])] = torch.tensor(sample["word_nodes"])
    return {
        "graph": collate_graphs([sample["graph"] for sample in samples], pad_nodes),
        "captions": captions,
        "caption_masks": meant,
        "index": torch.tensor([int(sample["index"]) for sample in samples]),
        "names": tuple(sample["name"] for sample in samples),
        "image_ids": tuple(sample["image_id"] for sample in samples),
        "region_ids": tuple(sample["region_id"] for sample in samples),
        "phrases": tuple(sample["phrase"] for sample in samples),
        "nodes": tuple(sample["nodes"] for sample in samples),
        **spoken,
    }


def scene_graph_sample(
    index: int,
    image_id: str,
    region_id: str,
    phrase: str,
    caption: Sequence[int],
    nodes: GraphNodes,
    image_feature: np.ndarray,
    node_features: np.ndarray,
    word_nodes: Sequence[int] | None = None,
) -> dict[str, Any]:
    """A sample that `collate_scene_graphs` takes; caption: the numbers of `Vocabulary.encode`.

    word_nodes: the node that each of these words speaks of, -1 for none; None where nobody knows.
    """
    return {
        "graph": graph_inputs(nodes, image_feature, node_features),
        "caption": list(caption),
        "index": index,
        "name": sample_name(image_id, region_id),
        "image_id": image_id,
        "region_id": region_id,
        "phrase": phrase,
        "nodes": nodes,
        "word_nodes": None if word_nodes is None else list(word_nodes),
    }


class SceneGraphs(Dataset):
    """Regions of images with their graphs, features and captions, by index or (epoch, index).

    Args:
        samples: `regionfiles/<split>_names.npy`, pairs of image and region id.
        regions: Folder of `<image id>.json`.
        image_features, box_features: Where the features are.
        vocabulary: What captions are numbered with.
        max_nodes: The first nodes of a graph that are kept, see `graph_nodes`.
        max_words: Length that a caption is cut to, with its begin and end.
        inclusive: Whether a box ends at its last pixel, see `read_region`.

    A word of a caption speaks of the node whose name it is, see `words_of_names`. A sample raises ValueError,
    LookupError or FileNotFoundError that names the image and what is wrong with it.
    """

    def __init__(
        self,
        samples: str | os.PathLike,
        regions: str | os.PathLike,
        image_features: ImageFeatures,
        box_features: BoxFeatures,
        vocabulary: Vocabulary,
        max_nodes: int = MAX_NODES,
        max_words: int = 25,
        inclusive: bool = True,
    ):
        if max_words < 2:
            raise ValueError(f"max_words={max_words} leaves no word after a caption's begin; 25 is usual.")
        self.samples = read_samples(samples)
        self.regions = Path(regions)
        self.image_features, self.box_features, self.vocabulary = image_features, box_features, vocabulary
        self.max_nodes, self.max_words, self.inclusive = max_nodes, max_words, inclusive
        missing = [image for image, _ in self.samples if image not in image_features.row]
        if missing:
            raise ValueError(
                f"{samples}: {len(missing)} of {len(self.samples)} samples are of images without a feature in "
                f"{image_features.file} (first: {missing[0]!r}); both must be of one split."
            )

    def __len__(self) -> int:
        return len(self.samples)

    def nodes(self, index: int) -> tuple[GraphNodes, str]:
        """The nodes and the phrase of sample `index`."""
        image_id, region_id = self.samples[index]
        graph = read_region(self.regions, image_id, region_id, self.inclusive)
        try:
            return graph_nodes(graph, self.max_nodes), graph.phrase
        except ValueError as error:
            raise ValueError(f"image {image_id!r}, region {region_id!r}: {error}") from error

    def references(self) -> dict[str, list[str]]:
        """Each sample's own phrase, by its name."""
        return {sample_name(*sample): [self.nodes(index)[1]] for index, sample in enumerate(self.samples)}

    def picture_name(self, index: int) -> str:
        """The file name of the picture that sample `index` is of."""
        return self.image_features.file_name(self.samples[index][0])

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        _, index = key if isinstance(key, tuple) else (0, key)
        image_id, region_id = self.samples[index]
        nodes, phrase = self.nodes(index)
        caption = self.vocabulary.encode(phrase, self.max_words)
        return scene_graph_sample(
            index,
            image_id,
            region_id,
            phrase,
            caption,
            nodes,
            self.image_features.vector(image_id),
            self.box_features.vectors(image_id, nodes.boxes),
            [-1, *words_of_names(phrase.split(), nodes.names), -1][: len(caption)],
        )
