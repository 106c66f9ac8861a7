"""Debug sets picked from a pool of images: what is picked is a function of labels, features and logits alone.

Source: the strategies S-Random, S-Similarity and S-Active-Learning of explanation-guided debugging; the similarity is
that of Data-Centric Debugging (Singla et al., 2022).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lightning_xai.data.debugset_manifest import Entry, image_path


@dataclass(frozen=True)
class ClassifiedImages:
    """Images, their labels and, where a strategy needs them, what a classifier makes of them.

    `paths` n files; `labels` (n,) int64; `features` (n, C), what the classifier's head reads; `logits` (n, classes).
    """

    paths: Sequence[str]
    labels: np.ndarray
    features: np.ndarray | None = None
    logits: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "features", "logits"):
            array = getattr(self, name)
            if array is None:
                continue
            if len(array) != len(self.paths):
                raise ValueError(f"{len(array)} {name} for {len(self.paths)} images.")
            broken = len(array) - int(np.isfinite(array.reshape(len(array), -1)).all(1).sum())
            if broken:
                raise ValueError(f"{broken} of {len(array)} images have {name} that are not finite.")

    def in_order(self) -> "ClassifiedImages":
        """The same images in alphabetical order of their paths, whatever order they were found in."""
        order = sorted(range(len(self.paths)), key=lambda index: self.paths[index])
        rows = {
            name: None if (array := getattr(self, name)) is None else array[order]
            for name in ("labels", "features", "logits")
        }
        return ClassifiedImages([self.paths[index] for index in order], **rows)


class Picked(NamedTuple):
    """Indices into the pool, best first; the score (k,) of each, where there is one; and what is worth a note."""

    indices: np.ndarray
    scores: np.ndarray | None
    note: str | None


def misclassified(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) bool: argmax of the logits is not the label."""
    return logits.argmax(1) != labels


def mean_failure_features(images: ClassifiedImages, label: int) -> np.ndarray | None:
    """m_c (C,) float64: mean feature of the images labelled `label` that are misclassified; None without such."""
    failures = misclassified(images.logits, images.labels) & (images.labels == label)
    return images.features[failures].mean(0, dtype=np.float64) if failures.any() else None


def squared_distances(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """d (n,) float64: ‖z - m‖² of each row of `features` (n, C) to `mean` (C,)."""
    return np.square(features - mean[None]).sum(1)


def entropies(logits: np.ndarray) -> np.ndarray:
    """H (n,) float64: -Σ p ln p of the softmax p of each row of `logits` (n, classes)."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -(np.exp(log_p) * log_p).sum(1)


def pick_at_random(pool: ClassifiedImages, discovery: None, label: int, count: int, seed: int) -> Picked:
    """`count` images of the class without replacement; the generator's seed is (seed, class index)."""
    members = np.flatnonzero(pool.labels == label)
    return Picked(np.random.default_rng([seed, label]).permutation(members)[:count], None, None)


def pick_similar(pool: ClassifiedImages, discovery: ClassifiedImages, label: int, count: int, seed: int) -> Picked:
    """The `count` images of the class nearest to its mean failure, ties in pool order; at random without a failure."""
    mean = mean_failure_features(discovery, label)
    if mean is None:
        picked = pick_at_random(pool, None, label, count, seed)
        return picked._replace(note="no failure of this class in the discovery set: picked at random")
    members = np.flatnonzero(pool.labels == label)
    distances = squared_distances(pool.features[members], mean)
    order = np.argsort(distances, kind="stable")[:count]
    return Picked(members[order], distances[order], None)


def pick_uncertain(pool: ClassifiedImages, discovery: None, label: int, count: int, seed: int) -> Picked:
    """The `count` images of the class of largest entropy, ties in pool order."""
    members = np.flatnonzero(pool.labels == label)
    uncertainty = entropies(pool.logits[members])
    order = np.argsort(-uncertainty, kind="stable")[:count]
    return Picked(members[order], uncertainty[order], None)


@dataclass(frozen=True)
class SelectionStrategy:
    """How images of one class are picked, and whether that takes a classifier and a set on which it fails."""

    pick: Callable[[ClassifiedImages, ClassifiedImages | None, int, int, int], Picked]
    needs_predictions: bool = True
    needs_discovery: bool = False
    by_chance: bool = False


SELECTIONS = {
    "S-Random": SelectionStrategy(pick_at_random, needs_predictions=False, by_chance=True),
    "S-Similarity": SelectionStrategy(pick_similar, needs_discovery=True),
    "S-Active-Learning": SelectionStrategy(pick_uncertain),
}


def plan_selection(
    strategy: str,
    pool: ClassifiedImages,
    class_names: Sequence[str],
    count: int,
    seed: int = 0,
    discovery: ClassifiedImages | None = None,
) -> list[Entry]:
    """Entries of the debug set that a selection strategy picks from `pool`, `count` a class or all there are.

    Args:
        pool: candidates, of which each class takes its own; their order does not matter.
        class_names: name of each label.
        discovery: images with labels on which the classifier's failures are looked up.

    Raises:
        ValueError: unknown strategy, a needed input is missing, or a label has no name.
    """
    if strategy not in SELECTIONS:
        raise ValueError(f"strategy {strategy!r} should be one of {', '.join(SELECTIONS)}.")
    if count < 1:
        raise ValueError(f"count={count} images a class should be at least 1.")
    known = SELECTIONS[strategy]
    if known.needs_discovery and (discovery is None or discovery.logits is None):
        raise ValueError(f"{strategy} needs a discovery set with logits, on which failures are looked up.")
    if known.needs_predictions and (pool.features is None or pool.logits is None):
        raise ValueError(f"{strategy} needs features and logits of the pool.")
    if len(pool.labels) and not 0 <= pool.labels.min() <= pool.labels.max() < len(class_names):
        raise ValueError(f"the pool's labels reach {pool.labels.max()}, but there are {len(class_names)} class names.")
    pool = pool.in_order()
    entries = []
    for label, name in enumerate(class_names):
        picked = known.pick(pool, discovery, label, count, seed)
        for rank, index in enumerate(picked.indices.tolist()):
            source = pool.paths[index]
            entries.append(
                Entry(
                    path=image_path(name, strategy, rank, Path(source).suffix),
                    class_name=name,
                    strategy=strategy,
                    rank=rank,
                    score=None if picked.scores is None else float(picked.scores[rank]),
                    source=str(source),
                    seed=seed if known.by_chance or picked.scores is None else None,
                    provider="pool",
                    note=picked.note,
                )
            )
    return entries


def plan_failures(images: ClassifiedImages, class_names: Sequence[str]) -> list[Entry]:
    """Entries of the misclassified images, by class and the probability of the wrong answer, highest first.

    They keep their names, by which crowd tasks refer to them; where several have one, as `00000001.jpg` of each class
    of Places, the class goes before it. `score` is that probability, `note` the wrong answer.
    """
    images = images.in_order()
    shifted = np.exp(images.logits.astype(np.float64) - images.logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    failed = misclassified(images.logits, images.labels)
    times = Counter(Path(images.paths[place]).stem for place in np.flatnonzero(failed))
    entries = []
    for label, name in enumerate(class_names):
        members = np.flatnonzero(failed & (images.labels == label))
        wrong, wrongly = images.logits[members].argmax(1), probabilities[members].max(1)
        for rank, place in enumerate(np.argsort(-wrongly, kind="stable").tolist()):
            source = images.paths[members[place]]
            file = Path(source)
            entries.append(
                Entry(
                    path=f"{name}/{file.name}" if times[file.stem] == 1 else f"{name}/{name}_{file.name}",
                    class_name=name,
                    strategy="failures",
                    rank=rank,
                    score=float(wrongly[place]),
                    source=str(source),
                    provider="discovery",
                    note=f"predicted {class_names[wrong[place]]}",
                )
            )
    return entries
