"""Several measures at once: each gets everything, and their numbers stand side by side."""

import math

import pytest

from lightning_xai.evaluate.measure import Measure
from lightning_xai.evaluate.relevance_energy import RelevanceEnergy
from lightning_xai.evaluate.several_measures import SeveralMeasures


class Counting(Measure):
    """How often it was told something, under a name of its own."""

    def __init__(self, name: str, images: int = 3, choice: str = "truth"):
        self.name, self.images, self.choice = name, images, choice

    def begin(self, methods):
        self.seen, self.counts = 0, dict.fromkeys(methods, 0)

    def see(self, task, outputs, batch):
        self.seen += 1

    def update(self, method, explanation, explained, batch, classify=None):
        self.counts[method] += 1

    def compute(self):
        row = {f"{self.name} seen": self.seen, "images": self.images}
        return {method: {self.name: count, **row} for method, count in self.counts.items()}


def test_numbers_side_by_side():
    measure = SeveralMeasures([Counting("first"), Counting("second")])
    assert (measure.choice, measure.limit) == ("truth", None)
    measure.begin(["a", "b"])
    measure.see(None, None, {})
    for method in "aba":
        measure.update(method, None, None, {}, None)
    expected = {"first": 2, "first seen": 1, "images": 3, "second": 2, "second seen": 1}
    assert measure.compute() == {"a": expected, "b": expected | {"first": 1, "second": 1}}
    assert list(measure.compute()["a"]) == ["first", "first seen", "images", "second", "second seen"]


def test_a_number_that_nobody_can_give_is_no_contradiction():
    measure = SeveralMeasures([Counting("first", images=math.nan), Counting("second", images=math.nan)])
    measure.begin(["a"])
    assert math.isnan(measure.compute()["a"]["images"])


def test_measures_that_do_not_fit_together():
    with pytest.raises(ValueError, match="measures is empty"):
        SeveralMeasures([])
    with pytest.raises(ValueError, match="RelevanceEnergy choice='truth' limit=2, Counting choice='truth' limit=None"):
        SeveralMeasures([RelevanceEnergy(limit=2), Counting("a")])
    measure = SeveralMeasures([Counting("first"), Counting("second", images=4)])
    measure.begin(["a"])
    with pytest.raises(ValueError, match="two measures say 'images' of a, but 3 and 4"):
        measure.compute()
