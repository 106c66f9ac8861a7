"""Explanations are laid on pixels and words where their tokens lie."""

import pytest
import torch

from lightning_xai.explain.explanation import Explanation, explain, min_max
from lightning_xai.explain.methods import method
from lightning_xai.explain.streams import ChosenPatches, FeatureLevels, ObjectQueries, Patches, Stream, Words
from lightning_xai.explain.targets import class_targets, detection_targets


def explanation(layout, relevance, samples=(0,)):
    stream = {"image": Stream("image", layout)}
    return Explanation({"image": relevance}, stream, torch.tensor(samples), torch.zeros(len(samples)))


def test_patches_lie_row_by_row_after_the_prefix():
    grid = explanation(Patches((2, 3), prefix=2), torch.arange(8.0)[None]).grid()
    assert grid.tolist() == [[[2, 3, 4], [5, 6, 7]]]


def test_levels_are_merged_with_the_same_sum():
    relevance = torch.rand(2, 4 * 6 + 2 * 3)
    found = explanation(FeatureLevels(((4, 6), (2, 3))), relevance, (0, 0)).grid()
    assert found.shape == (2, 4, 6)
    torch.testing.assert_close(found.sum((1, 2)), relevance.sum(1))
    assert explanation(FeatureLevels(((2, 2),)), relevance[:, :4]).grid().shape == (2, 2, 2)


def test_pixels():
    """Bilinear without aligned corners: the first and last quarter of a doubled axis are constant."""
    found = explanation(Patches((1, 2), prefix=0), torch.tensor([[0.0, 4.0]])).on_pixels((2, 4))
    assert found.tolist() == [[[0, 1, 3, 4]] * 2]


def test_words():
    text = explanation(Words((("a", "cat"), ("dog",))), torch.tensor([[0.1, 0.2], [0.3, 0.0]]), (0, 1))
    assert text.words(1, "image") == [("dog", pytest.approx(0.3))]
    with pytest.raises(ValueError, match="no relevance of 'text'; explained are image"):
        text.words(0)
    with pytest.raises(ValueError, match="'image' are Words and lie on no grid"):
        text.grid()
    with pytest.raises(ValueError, match="'image' are ObjectQueries, not words"):
        explanation(ObjectQueries(2), torch.zeros(1, 2)).words(0, "image")


def test_min_max():
    stretched = min_max(torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]]))
    assert stretched.tolist() == [[[0, 1]], [[0, 0]]]


def test_min_max_of_the_cells_that_count():
    maps = torch.tensor([[[1.0, 3.0, 9.0]], [[2.0, 2.0, 5.0]]])
    valid = torch.tensor([[[True, True, False]], [[True, True, False]]])
    assert min_max(maps, valid)[..., :2].tolist() == [[[0.0, 1.0]], [[0.0, 0.0]]]


def test_patches_of_which_each_sample_has_others():
    layout = ChosenPatches((2, 2), torch.tensor([[3, 0], [1, 2]]), prefix=1)
    relevance = {"image": torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 4.0]])}
    found = Explanation(relevance, {"image": Stream("image", layout)}, torch.tensor([1, 0]), torch.zeros(2))
    assert found.grid().tolist() == [[[0.0, 1.0], [2.0, 0.0]], [[4.0, 0.0], [0.0, 3.0]]]


def test_explaining_in_one_call(encoder_decoder, classifier, map_tokens, image_tokens):
    with torch.inference_mode():
        found = explain(
            encoder_decoder,
            {"tokens": map_tokens, "padding": None},
            lambda outputs: detection_targets(outputs["pred_logits"], torch.tensor([0, 2]), torch.tensor([1, 1])),
            method("generic_relevance", zero_row="identity"),
        )
    assert found.grid().shape == (2, 2, 4) and found.grid().sum() > 0
    assert not found.scores.requires_grad
    found = explain(torch.compile(classifier), (image_tokens,), class_targets, method("rollout"))
    assert found.on_pixels((32, 64)).shape == (3, 32, 64)
