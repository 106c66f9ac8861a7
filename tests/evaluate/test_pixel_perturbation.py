"""The perturbation test as a measure: curves that follow from what the classifier looks at."""

import pytest
import torch

from lightning_xai.evaluate.perturbation import PerturbationTest
from lightning_xai.evaluate.pixel_perturbation import PixelPerturbation

FIRST_ROW = torch.tensor([[[4.0, 3, 2, 1], [0, 0, 0, 0]]])


def upper_row(images: torch.Tensor) -> torch.Tensor:
    """Class 0 while the upper half shines more than 0.4."""
    bright = images[:, :, : images.shape[2] // 2].mean((1, 2, 3))
    return torch.stack([bright - 0.4, 0 * bright], 1)


def batch(count: int = 1, labels: list[int] | None = None) -> dict:
    images = torch.zeros(count, 3, 2, 4, dtype=torch.uint8)
    images[:, :, 0] = 255
    return {"images": images, "labels": torch.tensor(labels or [0] * count), "index": torch.arange(count)}


def test_a_true_explanation_falls_early_or_late(explained_maps):
    """Three of the four white pixels of eight must go; removed are 2, 4, 7 of all."""
    measure = PixelPerturbation(fractions=[0.25, 0.5, 0.875])
    measure.begin(["true", "false"])
    measure.update("true", *explained_maps(FIRST_ROW), batch(), upper_row)
    measure.update("false", *explained_maps(-FIRST_ROW), batch(), upper_row)
    early, late = 25 + 25 / 2, 25 + 25 + 37.5 / 2
    names = ["positive AUC 0..0.875", "negative AUC 0..0.875"]
    assert table_row(measure, "true", names) == pytest.approx([early, late])
    assert table_row(measure, "false", names) == pytest.approx([late, early])
    assert measure.compute()["true"]["accuracy"] == 1 and measure.compute()["true"]["images"] == 1


def table_row(measure: PixelPerturbation, method: str, names: list[str]) -> list[float]:
    return [measure.compute()[method][name] for name in names]


def test_numbers_are_those_of_the_test_on_pixels(explained_maps):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 2, 4, generator=generator)
    images = torch.randint(0, 256, (3, 3, 2, 4), generator=generator, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0])
    measure = PixelPerturbation(tests=["negative"])
    measure.begin(["a"])
    for samples in ([2, 0], [1]):
        given = {"images": images, "labels": labels, "index": torch.arange(3)}
        measure.update("a", *explained_maps(maps[samples], samples=samples), given, upper_row)
    expected = PerturbationTest("negative")
    expected.update(range(3), images / 255, maps, labels, upper_row)
    numbers = expected.compute()
    assert measure.compute()["a"] == {
        "accuracy": numbers["hits"][0],
        "negative AUC 0..0.9": numbers["auc"],
        "images": 3,
    }


def test_hits_against_the_label_or_the_explained_class(explained_maps):
    explanation, explained = explained_maps(FIRST_ROW, classes=[0])
    for against, accuracy in (("label", 0), ("explained", 1)):
        measure = PixelPerturbation(against=against)
        measure.begin(["a"])
        measure.update("a", explanation, explained, batch(labels=[1]), upper_row)
        assert measure.compute()["a"]["accuracy"] == accuracy


def test_bad_input(explained_maps):
    with pytest.raises(ValueError, match="against='target'"):
        PixelPerturbation(against="target")
    with pytest.raises(ValueError, match="tests is empty"):
        PixelPerturbation(tests=[])
    with pytest.raises(ValueError, match="test='forward' is unknown"):
        PixelPerturbation(tests=["forward"])
    with pytest.raises(ValueError, match="must be rising numbers"):
        PixelPerturbation(fractions=[0.5, 0.2])
    measure = PixelPerturbation()
    measure.begin(["a"])
    with pytest.raises(TypeError, match="needs a classifier"):
        measure.update("a", *explained_maps(FIRST_ROW), batch(), None)
    with pytest.raises(ValueError, match="images without a label"):
        measure.update("a", *explained_maps(FIRST_ROW), batch(labels=[-1]), upper_row)
    with pytest.raises(ValueError, match="several explanations"):
        measure.update("a", *explained_maps(FIRST_ROW.expand(2, -1, -1), samples=[0, 0]), batch(), upper_row)
