from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_xai.cli.followed_failures import FollowedFailures

LABELS = np.array([0, 0, 0, 1, 1, 1, 2])
NAMES = ["cat", "dog", "emu"]


class Pictures:
    labels = LABELS

    def path(self, place):
        return Path(f"/pool/{NAMES[LABELS[place]]}/{place}.png")

    def __getitem__(self, place):
        return torch.full((3, 8, 8), place, dtype=torch.uint8), {}


class Classifier:
    """Says what it is told to; its maps are the places of the images."""

    class_names = NAMES

    def __init__(self, said):
        self.said = np.array(said)

    def images(self, folder):
        return Pictures()

    def judged(self, folder):
        order = [6, 5, 4, 3, 2, 1, 0]  # not the order of the folder
        logits = np.eye(3)[self.said[order]]
        paths = [str(Pictures().path(place)) for place in order]
        return SimpleNamespace(paths=paths, labels=LABELS[order], logits=logits)

    def maps(self, images, places, method):
        values = np.linspace(0, 1, 64).reshape(8, 8)
        return np.stack([values + place for place in places]), self.said[list(places)]


FIRST = Classifier([0, 1, 1, 0, 0, 1, 0])  # wrong: 1, 2 (cat), 3, 4 (dog), 6 (emu)


@pytest.mark.parametrize(("count", "places"), [(3, [1, 3, 6]), (4, [1, 3, 6, 2]), (9, [1, 3, 6, 2, 4])])
def test_failures_are_taken_from_the_classes_in_turns(count, places):
    followed = FollowedFailures(FIRST, "pool", count, {"rollout": {}})
    assert followed.places == places
    assert followed.labels == [NAMES[LABELS[place]] for place in places]
    assert [int(picture.max()) for picture in followed.pictures] == places


def test_all_classifiers_are_asked_about_the_same_images():
    followed = FollowedFailures(FIRST, "pool", 3, {"rollout": {}})
    followed.add("before", FIRST)
    followed.add("after", Classifier(LABELS))
    assert followed.maps["before"][1] == ["dog", "cat", "cat"]
    assert followed.maps["after"][1] == ["cat", "dog", "emu"]
    assert np.array_equal(followed.maps["before"][0], followed.maps["after"][0])
    assert followed.picture().dtype == np.uint8


def test_without_failures_there_is_no_picture():
    followed = FollowedFailures(Classifier(LABELS), "pool", 3, {"rollout": {}})
    followed.add("before", FIRST)
    assert followed.places == [] and followed.picture() is None
