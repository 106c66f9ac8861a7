"""The segmentation test of explanations as a measure of a whole run."""

from collections.abc import Sequence

from lightning_xai.evaluate.measure import Batch, Classify, Measure, Numbers, image_ids
from lightning_xai.evaluate.object_masks import object_masks
from lightning_xai.evaluate.segmentation import SegmentationTest
from lightning_xai.evaluate.target_images import one_target_an_image
from lightning_xai.explain.explainable import Explained
from lightning_xai.explain.explanation import Explanation


class MaskSegmentation(Measure):
    """Pixel accuracy, mIoU, mAP and mF1 of images segmented by their explanation, see `SegmentationTest`.

    choice: "predicted" (the published numbers), "truth" or "class:NAME". f1_by_row: mF1 as the reference computes it.
    The data set gives `object_masks`.
    """

    def __init__(self, choice: str = "predicted", f1_by_row: bool = False):
        self.choice = choice
        self.f1_by_row = f1_by_row
        self.tests: dict[str, SegmentationTest] = {}

    def begin(self, methods: Sequence[str]) -> None:
        self.tests = {method: SegmentationTest(self.f1_by_row) for method in methods}

    def update(
        self, method: str, explanation: Explanation, explained: Explained, batch: Batch, classify: Classify = None
    ) -> None:
        samples = one_target_an_image(explanation)
        labels = object_masks(explained, batch)
        relevance = explanation.on_pixels(tuple(labels.shape[1:])).detach().float().cpu()
        ids = image_ids(batch)
        self.tests[method].update([ids[sample] for sample in samples], relevance, labels)

    def compute(self) -> dict[str, Numbers]:
        return {method: test.compute() for method, test in self.tests.items()}
