"""The perturbation test of explanations as a measure of a whole run."""

from collections.abc import Mapping, Sequence
from typing import Literal

from lightning_xai.evaluate.measure import Batch, Classify, Measure, Numbers, image_ids
from lightning_xai.evaluate.perturbation import FRACTIONS, PerturbationTest, Test
from lightning_xai.evaluate.target_images import one_target_an_image
from lightning_xai.explain.explainable import Explained
from lightning_xai.explain.explanation import Explanation


class PixelPerturbation(Measure):
    """Accuracy while pixels are removed in the order of relevance, as the area under its curve, see `PerturbationTest`.

    tests: "positive" (the most relevant pixels go first: a small area is good) and "negative" (the least relevant go
    first: a large one is). fractions: the removed shares of the pixels; the area runs from 0 to the last of them, which
    is part of the column's name, and is not divided by it. choice: "predicted", "truth" or "class:NAME", the class that
    is explained. against: what counts as a hit: the image's own "label", as in the published numbers, or the
    "explained" class, which needs no labels.
    """

    def __init__(
        self,
        choice: str = "predicted",
        tests: Sequence[Test] = ("positive", "negative"),
        fractions: Sequence[float] = FRACTIONS,
        against: Literal["label", "explained"] = "label",
    ):
        if against not in ("label", "explained"):
            raise ValueError(f"against={against!r} is unknown: it must be 'label' or 'explained'")
        if not tests:
            raise ValueError("tests is empty: it must be 'positive', 'negative' or both")
        self.choice = choice
        self.tests, self.fractions, self.against = tuple(tests), tuple(fractions), against
        self.begin(())
        for test in tests:  # so that a bad argument stops here
            PerturbationTest(test, fractions)

    def begin(self, methods: Sequence[str]) -> None:
        self.curves = {
            method: {test: PerturbationTest(test, self.fractions) for test in self.tests} for method in methods
        }

    def update(
        self, method: str, explanation: Explanation, explained: Explained, batch: Batch, classify: Classify = None
    ) -> None:
        if classify is None:
            raise TypeError("the perturbation test needs a classifier: a task that offers classify(images)")
        samples = one_target_an_image(explanation)
        images = batch["images"][samples].float() / 255
        classes = explained.classes if self.against == "explained" else batch["labels"][samples]
        if (classes < 0).any():
            raise ValueError("images without a label count no hits; give labelled ones, or against: explained")
        relevance = explanation.on_pixels(tuple(images.shape[-2:])).detach().float()
        ids = image_ids(batch)
        for test in self.curves[method].values():
            test.update([ids[i] for i in samples], images, relevance, classes.to(images.device), classify)

    def compute(self) -> dict[str, Numbers]:
        """Of each method `accuracy` (nothing removed), the area of each test in per cent, and how many images."""
        return {method: self._numbers(tests) for method, tests in self.curves.items()}

    def _numbers(self, tests: Mapping[Test, PerturbationTest]) -> Numbers:
        curves = {name: test.compute() for name, test in tests.items()}
        first = next(iter(curves.values()))
        areas = {f"{name} AUC 0..{self.fractions[-1]:g}": curve["auc"] for name, curve in curves.items()}
        return {"accuracy": first["hits"][0], **areas, "images": first["images"]}
