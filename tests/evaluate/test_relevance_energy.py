"""Relevance inside the true object: known answers, and the numbers of a run object by object."""

import pytest
import torch

from lightning_xai.evaluate.relevance_energy import RelevanceEnergy, energy_scores

MAPS = torch.tensor([[[6.0, 2.0], [-5.0, 0.0]]])


def one(labels: list[list[int]], maps: torch.Tensor = MAPS) -> dict[str, float]:
    return {name: float(value) for name, value in energy_scores(maps, torch.tensor([labels])).items()}


def test_scores_by_hand():
    assert one([[1, 0], [0, 0]]) == {"energy": 6 / 8, "pointing": 1, "area": 1 / 4}
    assert one([[0, 1], [1, 1]]) == {"energy": 2 / 8, "pointing": 0, "area": 3 / 4}
    # what nobody knows counts nowhere: not the energy of the peak, nor its place
    assert one([[-1, 1], [0, 0]]) == {"energy": 1, "pointing": 1, "area": 1 / 3}


@pytest.mark.parametrize("maps", [torch.zeros(1, 2, 2), -MAPS.abs() - 1, torch.tensor([[[3.0, 3], [3, 3 + 1e-6]]])])
def test_a_map_without_differences_above_zero_finds_nothing(maps):
    assert one([[1, 0], [0, 0]], maps) == {"energy": 0, "pointing": 0, "area": 1 / 4}


def test_what_all_pixels_have_alike_does_not_count():
    """As where each patch has its own share in a mean: 1 + 6, 1 + 2, 1, 1."""
    maps = 1 + MAPS.clamp(min=0)
    assert one([[1, 0], [0, 0]], maps) == {"energy": 6 / 8, "pointing": 1, "area": 1 / 4}
    # a least relevant pixel that nobody knows is no floor for the others
    assert one([[1, 0], [0, -1]], maps - torch.tensor([[[0, 0], [0, 1]]]))["energy"] == 6 / 8


def test_random_maps_have_the_energy_of_the_area():
    labels = torch.randint(-1, 2, (50, 40, 40), generator=torch.Generator().manual_seed(0))
    scores = energy_scores(torch.rand(50, 40, 40, generator=torch.Generator().manual_seed(1)), labels)
    torch.testing.assert_close(scores["energy"].mean(), scores["area"].mean(), atol=2e-3, rtol=0)


def test_energy_does_not_depend_on_the_scale():
    generator = torch.Generator().manual_seed(1)
    maps, labels = torch.rand(5, 7, 9, generator=generator), torch.randint(-1, 2, (5, 7, 9), generator=generator)
    tiny = energy_scores(1e-30 * maps, labels)
    for name, values in energy_scores(maps, labels).items():
        torch.testing.assert_close(tiny[name], values, atol=1e-6, rtol=0)


def batch(indices: list[int], masks: torch.Tensor) -> dict:
    count, h, w = masks.shape
    return {"images": torch.zeros(count, 3, h, w), "index": torch.tensor(indices), "object_masks": masks}


def test_means_over_targets_of_all_batches(explained_maps):
    generator = torch.Generator().manual_seed(2)
    masks = (torch.rand(3, 4, 4, generator=generator) < 0.5).to(torch.int8)
    maps = torch.rand(5, 4, 4, generator=generator)
    measure = RelevanceEnergy()
    for _ in range(2):  # what was before a run does not count
        measure.begin(["a", "b"])
        for method, sign in (("a", 1), ("b", -1)):
            measure.update(method, *explained_maps(sign * maps[:3], samples=[0, 1, 0]), batch([7, 3], masks[:2]))
            measure.update(method, *explained_maps(sign * maps[3:], samples=[0, 0]), batch([5], masks[2:]))
            # a process that evaluates image 3 once more
            measure.update(method, *explained_maps(sign * maps[:1]), batch([3], masks[:1]))
    table = measure.compute()
    assert list(table) == ["a", "b"]
    above = maps - maps.amin((1, 2), keepdim=True)
    expected = [
        float((one_map * masks[owner]).sum() / one_map.sum())
        for one_map, owner in zip(above, [0, 1, 0, 2, 2], strict=True)
    ]
    assert table["a"]["targets"] == 5
    assert table["a"]["energy"] == pytest.approx(sum(expected) / 5)
    assert table["a"]["area"] == pytest.approx(masks.float().mean((1, 2))[[0, 1, 0, 2, 2]].mean().item())
    assert table["b"] == {"energy": 0, "pointing": 0, "area": table["a"]["area"], "targets": 5}


def test_a_target_of_which_nothing_is_known_is_left_out(explained_maps):
    masks = torch.ones(2, 4, 4, dtype=torch.int8)
    masks[0] = -1
    measure = RelevanceEnergy()
    measure.begin(["a"])
    measure.update("a", *explained_maps(torch.eye(4).expand(2, 4, 4)), batch([0, 1], masks))
    measure.update("a", *explained_maps(torch.eye(4)[None]), batch([2], masks[:1]))
    assert measure.compute()["a"] == {"energy": 1, "pointing": 1, "area": 1, "targets": 1}


def test_relevance_of_coarse_cells_is_laid_on_the_pixels(explained_maps):
    maps = torch.tensor([[[1.0, 0.0]]])
    mask = torch.zeros(1, 4, 8, dtype=torch.int8)
    mask[:, :, :4] = 1
    measure = RelevanceEnergy()
    measure.begin(["a"])
    measure.update("a", *explained_maps(maps), batch([0], mask))
    # columns of the bilinear map: 1 1 7/8 5/8 | 3/8 1/8 0 0
    assert measure.compute()["a"]["energy"] == pytest.approx(3.5 / 4)


def test_bad_input(explained_maps):
    measure = RelevanceEnergy(limit=3)
    assert (measure.choice, measure.limit) == ("truth", 3)
    measure.begin(["a"])
    with pytest.raises(ValueError, match="relevance by a holds NaN"):
        measure.update(
            "a", *explained_maps(torch.full((1, 2, 2), torch.nan)), batch([0], torch.ones(1, 4, 4, dtype=torch.int8))
        )
    with pytest.raises(ValueError, match="no image was evaluated"):
        measure.compute()
