"""Masks from relevance: known answers, a brute-force Otsu, and independence of padding and neighbours."""

import numpy as np
import pytest
import torch

from lightning_xai.evaluate.relevance_masks import (
    gray_levels,
    kept_queries,
    otsu_masks,
    otsu_threshold,
    query_masks,
    stretch,
    valid_cells,
)


def brute_force(gray: np.ndarray) -> int:
    """The first of the 256 thresholds that separates the levels with the largest variance between the classes."""
    best, threshold = 0.0, 0
    for t in range(256):
        low, high = gray[gray <= t].astype(np.float64), gray[gray > t].astype(np.float64)
        if len(low) and len(high):
            variance = len(low) * len(high) / gray.size**2 * (low.mean() - high.mean()) ** 2
            if variance > best + 1e-9:
                best, threshold = variance, t
    return threshold


def test_two_levels_are_separated_by_the_lower_one():
    gray = torch.tensor([[[10, 10, 200]], [[0, 255, 255]]], dtype=torch.uint8)
    assert otsu_threshold(gray).tolist() == [10, 0]


@pytest.mark.parametrize("seed", range(4))
def test_threshold_is_that_of_a_brute_force_search(seed):
    generator = np.random.default_rng(seed)
    maps = generator.gamma(0.4, 40, (6, 5, 7)).clip(0, 255).astype(np.uint8)
    for gray, threshold in zip(maps, otsu_threshold(torch.from_numpy(maps)).tolist(), strict=True):
        assert ((gray > threshold) == (gray > brute_force(gray))).all()


def test_threshold_separates_two_clusters():
    generator = torch.Generator().manual_seed(0)
    low, high = (torch.randn(200, generator=generator) * 0.05 + centre for centre in (0.2, 0.8))
    masks = otsu_masks(torch.cat([low, high]).reshape(1, 20, 20))
    assert torch.equal(masks.flatten(), torch.arange(400) >= 200)


def test_gray_levels_are_truncated():
    maps = torch.tensor([[[0.0, 0.5, 0.999, 1.0]]])
    assert gray_levels(maps).tolist() == [[[0, 127, 254, 255]]]
    torch.testing.assert_close(stretch(maps * 3 - 7), torch.tensor([[[0.0, 127.5, 254.745, 255.0]]]))


def test_a_constant_map_gives_an_empty_mask():
    maps = torch.full((2, 3, 4), 0.7)
    maps[1, 0, 0] = 1
    assert gray_levels(maps)[0].max() == 0
    assert otsu_masks(maps).sum((1, 2)).tolist() == [0, 1]


def test_cells_of_padding_count_for_nothing():
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(3, 4, 5, generator=generator) - 0.3
    padded, valid = torch.full((3, 6, 7), 9.0), torch.zeros(3, 6, 7, dtype=torch.bool)
    padded[:, :4, :5], valid[:, :4, :5] = inside, True
    assert torch.equal(otsu_masks(padded, valid)[:, :4, :5], otsu_masks(inside))
    assert torch.equal(otsu_threshold(gray_levels(padded, valid), valid), otsu_threshold(gray_levels(inside)))
    assert otsu_masks(padded, valid)[~valid].sum() == 0


def test_valid_cells_from_ratios():
    cells = valid_cells(torch.tensor([[1.0, 1.0], [2 / 5, 3 / 4]]), (4, 5))
    assert cells[0].all()
    assert cells[1].nonzero().tolist() == [[y, x] for y in range(3) for x in range(2)]


def test_kept_queries_and_their_masks():
    probabilities = torch.tensor([[[0.6, 0.1, 0.3], [0.4, 0.3, 0.3]], [[0.1, 0.2, 0.7], [0.2, 0.51, 0.29]]])
    images, queries, classes = kept_queries(probabilities.log())
    assert [images.tolist(), queries.tolist(), classes.tolist()] == [[0, 1], [0, 1], [0, 1]]
    assert len(kept_queries(probabilities.log(), 0.55)[0]) == 1
    masks = torch.tensor([[[True, False]], [[False, True]]])
    logits = query_masks(masks, images, queries, (2, 2))
    assert logits.flatten(2).tolist() == [[[255, 0], [-1, -1]], [[-1, -1], [0, 255]]]


def test_gray_levels_must_be_gray_levels():
    with pytest.raises(ValueError, match=r"uint8, not torch\.float32"):
        otsu_threshold(torch.rand(1, 2, 2))
