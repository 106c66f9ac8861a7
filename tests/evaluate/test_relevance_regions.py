"""Regions of relevance maps, against maps whose regions are drawn by hand."""

import pytest
import torch

from lightning_xai.evaluate.relevance_regions import Region, overlap, relevance_regions


def blocks(*placed: tuple[int, int, int, int, float]) -> torch.Tensor:
    """A map (20, 30) with a block x1, y1, x2, y2 of each value."""
    relevance = torch.zeros(20, 30)
    for x1, y1, x2, y2, value in placed:
        relevance[y1:y2, x1:x2] = value
    return relevance


def test_regions_of_one_map_are_its_parts_the_strongest_first():
    found = relevance_regions(blocks((2, 3, 6, 7, 1.0), (10, 5, 20, 9, 1.0))[None])
    assert [region.box for region in found] == [(10, 5, 20, 9), (2, 3, 6, 7)]
    assert [region.share for region in found] == pytest.approx([40 / 56, 16 / 56])
    assert relevance_regions(blocks((2, 3, 6, 7, 1.0), (10, 5, 20, 9, 1.0))[None], limit=1) == found[:1]


def test_parts_that_touch_at_a_corner_are_one():
    (region,) = relevance_regions(blocks((2, 3, 6, 7, 1.0), (6, 7, 9, 9, 1.0))[None])
    assert region.box == (2, 3, 9, 9) and region.share == pytest.approx(1.0)


def test_each_target_first_says_its_strongest_region():
    maps = torch.stack([blocks((0, 0, 4, 4, 1.0), (10, 10, 13, 13, 1.0)), blocks((20, 2, 24, 6, 2.0))])
    assert [(region.target, region.box) for region in relevance_regions(maps, limit=5)] == [
        (0, (0, 0, 4, 4)),
        (1, (20, 2, 24, 6)),
        (0, (10, 10, 13, 13)),
    ]


def test_what_two_targets_point_at_is_one_region():
    maps = torch.stack([blocks((4, 4, 12, 12, 1.0)), blocks((4, 4, 12, 11, 1.0), (20, 4, 24, 8, 1.0))])
    assert [(region.target, region.box) for region in relevance_regions(maps)] == [
        (0, (4, 4, 12, 12)),
        (1, (20, 4, 24, 8)),
    ]


def test_negative_relevance_is_nowhere_and_specks_are_no_regions():
    relevance = blocks((2, 3, 8, 9, 1.0), (10, 10, 29, 19, -5.0), (28, 1, 29, 2, 0.6))
    assert relevance_regions(relevance[None]) == [Region(0, (2, 3, 8, 9), pytest.approx(36 / 36.6))]


def test_the_grain_of_pixels_is_blurred_into_regions():
    grain = torch.zeros(60, 90)
    grain[10:30:2, 20:50:2] = 1.0  # 150 single pixels, each of less than 2 %
    with pytest.raises(ValueError, match="no region stands out"):
        relevance_regions(grain[None])
    (region,) = relevance_regions(grain[None], blur=2.0)
    assert region.box == pytest.approx((20, 10, 50, 30), abs=2) and region.share > 0.8
    with pytest.raises(ValueError, match="blur=-1"):
        relevance_regions(grain[None], blur=-1)


def test_maps_that_say_nothing_are_refused():
    with pytest.raises(ValueError, match="2 targets is the same everywhere"):
        relevance_regions(torch.ones(2, 8, 8))
    with pytest.raises(ValueError, match="the relevance of the target is nowhere above 0"):
        relevance_regions(-torch.rand(1, 8, 8))
    with pytest.raises(ValueError, match="not finite"):
        relevance_regions(torch.full((1, 8, 8), torch.nan))
    with pytest.raises(ValueError, match="limit=0"):
        relevance_regions(torch.rand(1, 8, 8), limit=0)
    assert [
        region.target for region in relevance_regions(torch.stack([torch.ones(20, 30), blocks((0, 0, 4, 4, 1))]))
    ] == [1]


def test_overlap():
    assert overlap((0, 0, 4, 4), (2, 0, 6, 4)) == pytest.approx(8 / 24)
    assert overlap((0, 0, 4, 4), (4, 0, 6, 4)) == 0 and overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 0
