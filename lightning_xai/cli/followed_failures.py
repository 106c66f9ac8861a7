"""A few failures of a classifier, and where it and those that follow it look."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_xai.cli.classifier_runs import TrainedClassifier
from lightning_xai.draw.debug_report import draw_before_after


class FollowedFailures:
    """Failures of `classifier` among the images of a folder, at most `count`, class by class in turns.

    method: the explanation method by its name, with its options.
    """

    def __init__(
        self, classifier: TrainedClassifier, folder: str, count: int, method: Mapping[str, dict[str, Any] | None]
    ):
        self.images, self.method = classifier.images(folder), method
        judged = classifier.judged(folder)
        wrong = set(np.array(judged.paths)[judged.logits.argmax(1) != judged.labels].tolist())
        by_class: dict[int, list[int]] = {}
        for place, label in enumerate(self.images.labels.tolist()):
            if str(self.images.path(place)) in wrong:
                by_class.setdefault(label, []).append(place)
        longest = max(map(len, by_class.values()), default=0)
        turns = [places[turn] for turn in range(longest) for places in by_class.values() if turn < len(places)]
        self.places = turns[:count]
        self.pictures = [self.images[place][0].permute(1, 2, 0).numpy() for place in self.places]
        self.labels = [classifier.class_names[self.images.labels[place]] for place in self.places]
        self.maps: dict[str, tuple[np.ndarray, list[str]]] = {}

    def add(self, name: str, classifier: TrainedClassifier) -> None:
        """Ask a classifier what it says of these images, and why."""
        if self.places:
            maps, classes = classifier.maps(self.images, self.places, self.method)
            self.maps[name] = (maps, [classifier.class_names[label] for label in classes])

    def picture(self) -> np.ndarray | None:
        """A row an image, a column a classifier, uint8 (h, w, 3); None without failures."""
        return draw_before_after(self.pictures, self.labels, self.maps) if self.maps else None
