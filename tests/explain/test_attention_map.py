"""Attention laid on cells: known answers."""

import pytest
import torch

from lightning_xai.explain.attention_map import level_maps, merged_map
from lightning_xai.explain.recording import DeformableRecord
from lightning_xai.explain.streams import Site

SITE = Site("attn", "deformable", "query", "image", "decoder", 0)
SHAPES = torch.tensor([[4, 8], [2, 4]])


def record_of(samples):
    """One query and head; samples: (level, x, y, weight), one point a level."""
    locations, weights = torch.zeros(1, 1, 1, 2, 1, 2), torch.zeros(1, 1, 1, 2, 1)
    for level, x, y, weight in samples:
        locations[0, 0, 0, level, 0] = torch.tensor([x, y])
        weights[0, 0, 0, level, 0] = weight
    return DeformableRecord(SITE, SHAPES, locations, weights)


def test_a_sample_at_a_cell_centre_falls_on_that_cell():
    fine, coarse = level_maps(record_of([(0, 2.5 / 8, 1.5 / 4, 0.75), (1, 0.5 / 4, 1.5 / 2, 0.25)]), 0)
    assert fine.nonzero().tolist() == [[1, 2]]
    assert fine[1, 2] == 0.75
    assert coarse.nonzero().tolist() == [[1, 0]]
    assert coarse[1, 0] == 0.25


def test_a_sample_between_cells_is_shared():
    fine, _ = level_maps(record_of([(0, 3.25 / 8, 2 / 4, 1.0)]), 0)
    torch.testing.assert_close(fine[1:3, 2:4], torch.tensor([[0.125, 0.375], [0.125, 0.375]]))
    assert fine.sum() == 1


def test_weight_outside_is_lost():
    maps = level_maps(record_of([(0, 0.0, 1.5 / 4, 0.5), (1, 2.0, 0.5, 0.5)]), 0)
    assert maps[0].sum() == pytest.approx(0.25)
    assert maps[1].sum() == 0


def test_heads_are_averaged():
    locations = torch.full((1, 1, 2, 2, 1, 2), 0.5)
    weights = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1, 1).expand(1, 1, 2, 2, 1)
    record = DeformableRecord(SITE, SHAPES, locations, weights)
    assert sum(m.sum() for m in level_maps(record, 0)) == pytest.approx(1.0)
    assert sum(m.sum() for m in level_maps(record, 0, head=0)) == pytest.approx(2.0)
    assert sum(m.sum() for m in level_maps(record, 0, head=1)) == 0


def test_merged_map_keeps_the_sum_and_the_place():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(h, w, generator=generator) for h, w in ((7, 12), (4, 6), (2, 3), (1, 2))]
    merged = merged_map(maps)
    assert merged.shape == (7, 12)
    torch.testing.assert_close(merged.sum(), sum(m.sum() for m in maps))

    one = torch.zeros(4, 6)
    one[2, 3] = 1
    spread = merged_map([torch.zeros(16, 24), one])
    rows, columns = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(24) + 0.5, indexing="ij")
    assert (spread * rows).sum() == pytest.approx(10)
    assert (spread * columns).sum() == pytest.approx(14)


def test_merged_map_of_a_flat_level_is_flat():
    merged = merged_map([torch.zeros(4, 8), torch.full((1, 1), 32.0)])
    torch.testing.assert_close(merged, torch.ones(4, 8))


def test_merged_map_of_one_level_is_that_level():
    cells = torch.rand(3, 5)
    torch.testing.assert_close(merged_map([cells]), cells)
