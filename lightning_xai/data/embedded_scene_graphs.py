"""The embedded world as scene graphs with the sentences that follow from them, with no download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from lightning_xai.data.abstract_graph import MAX_NODES, AbstractGraph, Box, GraphObject, GraphRelation, graph_nodes
from lightning_xai.data.detection_transforms import Draws, sample_seed
from lightning_xai.data.drawn_features import DrawnFeatures
from lightning_xai.data.embedded_detection import EmbeddedDetection
from lightning_xai.data.scene import Scene, SceneRecipe
from lightning_xai.data.scene_captions import RELATION_WORDS
from lightning_xai.data.scene_graph import scene_graph_sample
from lightning_xai.data.scene_graph_files import sample_name
from lightning_xai.data.scene_graph_module import CaptionedGraphs
from lightning_xai.data.scene_relations import holds
from lightning_xai.data.vocabulary import Vocabulary

POSITIONS = ("left of", "right of", "above", "below")
MAX_OBJECTS = 3  # with two attributes each and one relation: as many nodes as the captioner takes
SAID = 0.7  # how often a clear position is asked for
FEATURES = DrawnFeatures()
DEFAULT_RECIPE = SceneRecipe(min_size=18.0, max_objects=5, max_rotation=20.0)


def spoken_words(graph: AbstractGraph) -> list[tuple[str, int]]:
    """What a graph of this world asks for, word by word, each with the number of the node it speaks of, -1 for none.

    Objects come in the graph's order, each after its attributes in theirs; the relation, which must be of the first
    object to the second, stands between them. An article speaks of its object. Raises ValueError for other or more
    relations.
    """
    said: list[list[tuple[str, int]]] = []
    node = 0  # as `graph_nodes` numbers them
    for item in graph.objects:
        words = [(word, node + place) for place, word in enumerate(item.attributes, 1)] + [(item.name, node)]
        said.append([("an" if words[0][0][0] in "aeiou" else "a", node), *words])
        node += 1 + len(item.attributes)
    between: list[tuple[str, int]] = [("and", -1)]
    if graph.relations:
        ends = [item.identity for item in graph.objects[:2]]
        if len(graph.relations) > 1 or [graph.relations[0].subject, graph.relations[0].object] != ends:
            raise ValueError(
                f"relations {[relation.name for relation in graph.relations]}: a sentence states one, of its first "
                "object to its second."
            )
        relation = [(word, node) for word in RELATION_WORDS[graph.relations[0].name].split()]
        said[:2] = [[*said[0], *relation, *said[1]]]
    first, *others = said
    return first + [word for phrase in others for word in between + phrase]


def sentence(graph: AbstractGraph) -> str:
    """The words of `spoken_words`: "a red star to the left of an orange dotted heart and a circle"."""
    return " ".join(word for word, _ in spoken_words(graph))


def position_of(scene: Scene, subject: int, other: int) -> str | None:
    """Where the object numbered `subject` is, seen from `other`, along the axis on which they differ more; None where
    a person would hesitate."""
    a, b = scene.objects[subject], scene.objects[other]
    across, down = abs(a.x - b.x) / scene.width, abs(a.y - b.y) / scene.height
    names = POSITIONS[:2] if across > down else POSITIONS[2:]
    return next((name for name in names if holds(scene, subject, name, other)), None)


def draw_graph(scene: Scene, boxes: np.ndarray, draws: Draws) -> AbstractGraph:
    """A graph of some objects of a scene in any order, each with none, its colour, or colour and texture as attributes.

    Where it is clear, the position of the first object to the second is mostly asked for. boxes: (N, 4) of the objects.
    """
    left = list(range(len(scene.objects)))
    chosen = [left.pop(draws.integer(0, len(left) - 1)) for _ in range(draws.integer(1, min(len(left), MAX_OBJECTS)))]
    objects = []
    for number in chosen:
        item = scene.objects[number]
        attributes = (item.colour, item.texture)[: draws.integer(0, 2)]
        objects.append(GraphObject(number, item.shape, attributes, tuple(map(float, boxes[number]))))
    position = position_of(scene, *chosen[:2]) if len(chosen) > 1 and draws.uniform() < SAID else None
    relations = () if position is None else (GraphRelation(chosen[0], position, chosen[1]),)
    graph = AbstractGraph(tuple(objects), relations)
    return AbstractGraph(graph.objects, graph.relations, sentence(graph))


def moved_boxes(graph: AbstractGraph, share: float, draws: Draws) -> AbstractGraph:
    """The graph with each side of each object's box moved by up to `share` of the box's width or height."""
    objects = []
    for item in graph.objects:
        x1, y1, x2, y2 = item.box
        sizes = (x2 - x1, y2 - y1) * 2
        moved = (side + share * (2 * draws.uniform() - 1) * size for side, size in zip(item.box, sizes, strict=True))
        objects.append(item._replace(box=tuple(moved)))
    return replace(graph, objects=tuple(objects))


class EmbeddedSceneGraphs(Dataset):
    """Scenes number 0 to `n_scenes` - 1 of a split, each with a graph and its sentence.

    Evaluation draws the graph from (seed, index), training from (seed, epoch, index). Nodes have `DrawnFeatures` of
    what is visible of their objects, the image that of the whole picture. box_jitter: in training the sides of an
    object's box are off by up to this share of its width and height, as the boxes of a detector are.
    """

    def __init__(
        self,
        recipe: SceneRecipe,
        split: str,
        n_scenes: int,
        vocabulary: Vocabulary,
        seed: int = 0,
        box_jitter: float = 0.0,
    ):
        self.scenes = EmbeddedDetection(recipe, split, n_scenes, seed)
        self.split, self.seed, self.vocabulary = split, seed, vocabulary
        self.box_jitter = box_jitter if split == "train" else 0.0
        self._seen: dict[int, dict[Box | None, np.ndarray]] = {}  # of each scene; None for the whole picture

    def __len__(self) -> int:
        return len(self.scenes)

    def graph(self, index: int, epoch: int = 0) -> AbstractGraph:
        """What sample `index` asks for; without training the same in each epoch."""
        boxes, _ = self.scenes.boxes(index)
        drawn = Draws(sample_seed(self.seed, epoch if self.split == "train" else 0, index))
        graph = draw_graph(self.scenes.scene(index), boxes.numpy(), drawn)
        return moved_boxes(graph, self.box_jitter, drawn) if self.box_jitter else graph

    def name(self, index: int) -> tuple[str, str]:
        """Image and region id of sample `index`."""
        return f"{self.split}{index:06d}", "0"

    def picture(self, index: int) -> np.ndarray:
        """The picture of sample `index`, uint8 (h, w, 3)."""
        return self.scenes.load(index)[0].permute(1, 2, 0).numpy()

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        graph = self.graph(index, epoch)
        nodes = graph_nodes(graph, MAX_NODES)
        phrase = self.vocabulary.encode(graph.phrase, max_words=30)
        spoken = [-1, *(node if node < len(nodes) else -1 for _, node in spoken_words(graph)), -1][: len(phrase)]
        image, features = self._features(index, nodes.boxes)
        return scene_graph_sample(index, *self.name(index), graph.phrase, phrase, nodes, image, features, spoken)

    def _features(self, index: int, boxes: Sequence[Box]) -> tuple[np.ndarray, np.ndarray]:
        """Features of the whole picture (C,) and of N boxes (N, C); those of boxes that stay the same are kept."""
        known = self._seen.get(index, {})
        missing = [box for box in dict.fromkeys(boxes) if box not in known]
        if missing:
            known[None], found = FEATURES.features(self.scenes.load(index)[0], np.array(missing, np.float32))
            known |= dict(zip(missing, found, strict=True))
        if not self.box_jitter:
            self._seen[index] = known
        return known[None], np.stack([known[box] for box in boxes])


class EmbeddedSceneGraphsModule(CaptionedGraphs):
    """Scene graphs of the embedded world: finite splits of scenes, each a function of (seed, split, index).

    box_jitter: see `EmbeddedSceneGraphs`. Raises ValueError unless it is at least 0 and below 0.5.
    """

    def __init__(
        self,
        recipe: SceneRecipe = DEFAULT_RECIPE,
        n_train: int = 3000,
        n_val: int = 300,
        n_test: int = 300,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        box_jitter: float = 0.0,
    ):
        super().__init__(batch_size, eval_batch_size, num_workers, seed=seed)
        if not 0 <= box_jitter < 0.5:
            raise ValueError(f"box_jitter={box_jitter} is a share of a box's size, at least 0 and below 0.5")
        self.box_jitter = box_jitter
        self.recipe, self.new_pictures = recipe, FEATURES
        self.sizes = {"train": n_train, "val": n_val, "test": n_test}
        # what a caption's words can be, for who takes captions apart
        self.word_kinds = {
            "objects": tuple(recipe.shapes),
            "attributes": (*recipe.colours, *recipe.textures),
            "relations": tuple(RELATION_WORDS[name] for name in POSITIONS),
        }
        phrases = [phrase for kind in self.word_kinds.values() for phrase in kind]
        words = {"a", "an", "and", *(word for phrase in phrases for word in phrase.split())}
        self.vocabulary = Vocabulary.of_words(sorted(words))
        self._splits: dict[str, EmbeddedSceneGraphs] = {}

    def dataset(self, split: str) -> EmbeddedSceneGraphs:
        split = "test" if split == "predict" else split
        if split not in self._splits:
            self._splits[split] = EmbeddedSceneGraphs(
                self.recipe, split, self.sizes[split], self.vocabulary, self.seed, self.box_jitter
            )
        return self._splits[split]

    def references(self, split: str) -> dict[str, list[str]]:
        dataset = self.dataset(split)
        return {sample_name(*dataset.name(index)): [dataset.graph(index).phrase] for index in range(len(dataset))}

    def picture(self, split: str, index: int) -> np.ndarray:
        """The picture of sample `index` of a split, uint8 (h, w, 3)."""
        return self.dataset(split).picture(index)
