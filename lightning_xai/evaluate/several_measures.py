"""Several measures of the same explanations in one run and one table."""

from collections.abc import Sequence
from math import isnan
from typing import Any

from lightning_xai.evaluate.measure import Batch, Classify, Measure, Numbers
from lightning_xai.explain.explainable import Explainable, Explained
from lightning_xai.explain.explanation import Explanation


class SeveralMeasures(Measure):
    """The numbers of all of `measures` side by side, about targets that are explained once.

    All of them must ask for the same targets (`choice`, `limit`). A column of two measures, such as the number of
    images, is there once; raises ValueError where they have different numbers under one name, or disagree on targets.
    """

    def __init__(self, measures: list[Measure]):
        if not measures:
            raise ValueError("measures is empty: name at least one, such as RelevanceEnergy")
        asked = [(measure.choice, measure.limit) for measure in measures]
        if len(set(asked)) > 1:
            said = ", ".join(
                f"{type(measure).__name__} choice={choice!r} limit={limit}"
                for measure, (choice, limit) in zip(measures, asked, strict=True)
            )
            raise ValueError(f"measures of one run explain the same targets, but these differ: {said}")
        self.measures = list(measures)
        self.choice, self.limit = asked[0]

    def begin(self, methods: Sequence[str]) -> None:
        for measure in self.measures:
            measure.begin(methods)

    def see(self, task: Explainable, outputs: Any, batch: Batch) -> None:
        for measure in self.measures:
            measure.see(task, outputs, batch)

    def update(
        self, method: str, explanation: Explanation, explained: Explained, batch: Batch, classify: Classify = None
    ) -> None:
        for measure in self.measures:
            measure.update(method, explanation, explained, batch, classify)

    def compute(self) -> dict[str, Numbers]:
        together: dict[str, Numbers] = {}
        for measure in self.measures:
            for method, numbers in measure.compute().items():
                row = together.setdefault(method, {})
                for name, number in numbers.items():
                    known = row.setdefault(name, number)
                    if known != number and not (isnan(known) and isnan(number)):
                        raise ValueError(f"two measures say {name!r} of {method}, but {known} and {number}")
        return together
