"""Pixel perturbation: known answers on a classifier that adds up pixels."""

import math

import pytest
import torch
from torch import Tensor

from lightning_xai.evaluate.perturbation import (
    PerturbationTest,
    area_under_curve,
    perturbation_scores,
    prediction_scores,
    remove_pixels,
)


def brightness(images: Tensor) -> Tensor:
    """Class 0 scores the sum of all pixels of the first channel, class 1 always 4.5, class 2 nothing."""
    light = images[:, 0].sum((1, 2))
    return torch.stack([light, torch.full_like(light, 4.5), torch.zeros_like(light)], 1)


def ten_pixels() -> tuple[Tensor, Tensor]:
    """A picture of 2 x 5 pixels whose upper row is white, and the relevance that says so, without ties."""
    image = torch.zeros(1, 3, 2, 5)
    image[0, :, 0] = 1
    return image, torch.arange(10.0, 0, -1).reshape(1, 2, 5)


def test_the_most_or_the_least_relevant_pixels_go():
    image, relevance = ten_pixels()
    positive = remove_pixels(image, relevance, 3, "positive")
    assert positive[0, :, 0].tolist() == [[0, 0, 0, 1, 1]] * 3
    negative = remove_pixels(image, relevance, 6, "negative")
    assert negative[0, :, 0].tolist() == [[1, 1, 1, 1, 0]] * 3
    assert torch.equal(remove_pixels(image, relevance, 0, "positive"), image)
    assert not remove_pixels(image, relevance, 10, "negative").any()
    assert image.sum() == 15, "the given images are not changed"


def test_scores_by_hand():
    logits, intact = torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[5.0, 0.0, 0.0]])
    scores = prediction_scores(logits, torch.tensor([0]), intact)
    assert scores["hits"].item() == 0
    # the target itself has the second largest probability
    assert scores["dissimilarities"].item() == pytest.approx(0)
    assert scores["logit_diff"].item() == pytest.approx(-2)
    largest = math.exp(3) / (math.exp(1) + math.exp(3) + 1)
    before = math.exp(5) / (math.exp(5) + 2)
    assert scores["prob_diff"].item() == pytest.approx(largest - before, abs=1e-6)
    scores = prediction_scores(intact, torch.tensor([0]), intact)
    assert scores["hits"].item() == 1 and scores["dissimilarities"].item() == pytest.approx(5)


def test_a_true_explanation_falls_fast_and_slowly():
    """Five white pixels give 5 > 4.5; the first one that goes loses class 0."""
    image, relevance = ten_pixels()
    curves = {}
    for test in ("positive", "negative"):
        scores = perturbation_scores(brightness, image, relevance, torch.tensor([0]), test, range(1, 10))
        curves[test] = scores["hits"][0].tolist()
    assert curves["positive"] == [1] + [0] * 9
    assert curves["negative"] == [1] * 6 + [0] * 4


def test_area_is_that_of_the_published_numbers():
    assert area_under_curve(torch.ones(10), [i / 10 for i in range(1, 10)]) == pytest.approx(90)
    assert area_under_curve(torch.tensor([1.0, 0, 0]), [0.5, 1.0]) == pytest.approx(25)
    with pytest.raises(ValueError, match="3 values need 2 fractions"):
        area_under_curve(torch.ones(3), [0.1])


def test_the_whole_test_in_batches():
    image, relevance = ten_pixels()
    images, maps = torch.cat([image, image, 0 * image]), torch.cat([relevance, -relevance, relevance])
    targets = torch.tensor([0, 0, 1])
    whole = PerturbationTest("positive")
    whole.update([0, 1, 2], images, maps, targets, brightness)
    parts = PerturbationTest("positive")
    parts.update([2, 1], images[[2, 1]], maps[[2, 1]], targets[[2, 1]], brightness)
    parts.update([0, 1], images[[0, 1]], maps[[0, 1]], targets[[0, 1]], brightness)
    numbers = whole.compute()
    assert numbers == parts.compute()
    assert numbers["images"] == 3 and numbers["fractions"][:2] == [0.0, 0.1]
    # image 0 is lost at once, image 1 after the sixth pixel, image 2 never
    assert numbers["hits"] == pytest.approx([1, *[2 / 3] * 5, *[1 / 3] * 4])
    assert numbers["auc"] == pytest.approx(100 / 3 * ((3 + 2) / 20 + 4 * 0.2 + (2 + 1) / 20 + 3 * 0.1))


def test_random_state_and_gradients_stay():
    image, relevance = ten_pixels()
    state = torch.get_rng_state()
    scores = perturbation_scores(brightness, image.requires_grad_(), relevance, torch.tensor([0]), "positive", [2])
    assert not scores["logit_diff"].requires_grad and image.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_input():
    image, relevance = ten_pixels()
    with pytest.raises(ValueError, match="test='forward' is unknown"):
        remove_pixels(image, relevance, 1, "forward")
    with pytest.raises(ValueError, match="cannot remove 11 of 10 pixels"):
        remove_pixels(image, relevance, 11, "positive")
    with pytest.raises(ValueError, match=r"relevance \(1, 5, 2\)"):
        remove_pixels(image, relevance.transpose(1, 2), 1, "positive")
    for fractions in ([], [0.5, 0.2], [0.0, 0.5], [0.5, 1.5]):
        with pytest.raises(ValueError, match="must be rising numbers"):
            PerturbationTest("positive", fractions)
    with pytest.raises(ValueError, match="the relevance holds NaN or infinite numbers"):
        PerturbationTest("positive").update([0], image, relevance / 0, torch.tensor([0]), None)
    with pytest.raises(ValueError, match="test='both'"):
        PerturbationTest("both")
