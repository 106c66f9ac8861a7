"""Segmentation by relevance: known answers, and the same numbers counted pixel by pixel."""

import numpy as np
import pytest
import torch

from lightning_xai.evaluate.segmentation import (
    SegmentationTest,
    foreground,
    segmentation_average_precision,
    segmentation_counts,
    segmentation_f1,
)

RELEVANCE = torch.tensor([[[0.0, 1.0, 9.0], [10.0, 8.0, 2.0]]])
LABELS = torch.tensor([[[0, 1, 1], [1, 0, -1]]])


def random_images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps with many equal values from 0 to 8, which scale without rounding, and labels of all three kinds."""
    generator = torch.Generator().manual_seed(seed)
    relevance = torch.randint(0, 9, (count, 7, 9), generator=generator).float()
    relevance[:, 0, :2] = torch.tensor([0.0, 8.0])
    return relevance, torch.randint(-1, 2, (count, 7, 9), generator=generator)


def test_foreground_is_above_the_mean():
    assert foreground(RELEVANCE).tolist() == [[[False, False, True], [True, True, False]]]
    assert not foreground(torch.full((1, 2, 2), 3.0)).any()


def test_counts_by_hand():
    counts = segmentation_counts(foreground(RELEVANCE), LABELS)
    assert {name: value[0].tolist() for name, value in counts.items()} == {
        "correct": 3,
        "labelled": 5,
        "intersection": [1, 2],
        "union": [3, 4],
    }
    assert segmentation_f1(foreground(RELEVANCE), LABELS).item() == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    # rows: 2 * 1 / (1 + 2) above, 2 * 1 / (2 + 1) below
    assert segmentation_f1(foreground(RELEVANCE), LABELS, by_row=True).item() == pytest.approx(2 / 3)


def test_rows_without_object_count_zero():
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, 1, 1:3] = 1
    assert segmentation_f1(labels == 1, labels).item() == 1
    assert segmentation_f1(labels == 1, labels, by_row=True).item() == pytest.approx(1 / 4)


def test_counts_agree_with_a_loop_over_pixels():
    relevance, labels = random_images(5, seed=0)
    counts = segmentation_counts(foreground(relevance), labels)
    f1 = segmentation_f1(foreground(relevance), labels)
    for i in range(5):
        mean = relevance[i].mean()
        decisions = [(int(r > mean), int(t)) for r, t in zip(relevance[i].flatten(), labels[i].flatten(), strict=True)]
        decisions = [(said, true) for said, true in decisions if true >= 0]
        assert counts["labelled"][i] == len(decisions)
        assert counts["correct"][i] == sum(said == true for said, true in decisions)
        for c in (0, 1):
            assert counts["intersection"][i, c] == sum(said == true == c for said, true in decisions)
            assert counts["union"][i, c] == sum(c in decision for decision in decisions)
        assert f1[i] == pytest.approx(
            2 * counts["intersection"][i, 1].item() / (sum(said + true for said, true in decisions)), abs=1e-6
        )


def test_average_precision_agrees_with_its_definition():
    relevance, labels = random_images(4, seed=1)
    ours = segmentation_average_precision(relevance, labels)
    for i in range(4):
        r = relevance[i].numpy().astype(np.float64)
        r = (r - r.min()) / (r.max() - r.min())
        known = labels[i].numpy() >= 0
        scores = np.round(np.concatenate([1 - r[known], r[known]]), 9)
        true = np.concatenate([labels[i].numpy()[known] == 0, labels[i].numpy()[known] == 1])
        expected, recall = 0.0, 0.0
        for threshold in sorted(set(scores), reverse=True):
            chosen = scores >= threshold
            gained = true[chosen].sum() / true.sum()
            expected += (gained - recall) * true[chosen].mean()
            recall = gained
        assert ours[i].item() == pytest.approx(expected, abs=1e-5)


def test_a_constant_map_says_nothing():
    labels = torch.tensor([[[0, 1], [0, 0]]])
    assert not foreground(torch.full((1, 2, 2), 3.0)).any()
    assert segmentation_average_precision(torch.full((1, 2, 2), 3.0), labels).item() == pytest.approx(0.5)


def test_a_perfect_map():
    labels = torch.zeros(2, 6, 6, dtype=torch.int64)
    labels[:, 2:4, 1:3] = 1
    test = SegmentationTest()
    test.update([0, 1], labels.float(), labels)
    assert test.compute() == {"pixel_accuracy": 1, "mIoU": 1, "mAP": 1, "mF1": 1, "images": 2}


def test_all_images_together():
    relevance, labels = random_images(6, seed=2)
    test = SegmentationTest()
    test.update([3, 1], relevance[[3, 1]], labels[[3, 1]])
    test.update([0, 1, 2, 5, 4], relevance[[0, 1, 2, 5, 4]], labels[[0, 1, 2, 5, 4]])
    numbers = test.compute()
    counts = segmentation_counts(foreground(relevance), labels)
    intersection, union = counts["intersection"].sum(0).tolist(), counts["union"].sum(0).tolist()
    assert numbers["images"] == 6
    assert numbers["pixel_accuracy"] == pytest.approx(counts["correct"].sum().item() / counts["labelled"].sum().item())
    assert numbers["mIoU"] == pytest.approx(sum(i / u for i, u in zip(intersection, union, strict=True)) / 2)
    assert numbers["mAP"] == pytest.approx(segmentation_average_precision(relevance, labels).mean().item())
    assert numbers["mF1"] == pytest.approx(segmentation_f1(foreground(relevance), labels).mean().item())


def test_an_image_without_labels_is_left_out():
    relevance, labels = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4).long()
    alone, both = SegmentationTest(), SegmentationTest()
    alone.update([0], relevance[:1], labels[None])
    both.update([0, 1], relevance, torch.stack([labels, torch.full((4, 4), -1)]))
    both.update([2], relevance[:1], torch.full((1, 4, 4), -1))
    assert both.compute() == alone.compute()


def test_bad_input():
    test = SegmentationTest()
    with pytest.raises(ValueError, match="differ in shape"):
        test.update([0], torch.zeros(1, 2, 2), torch.zeros(1, 2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels hold \[7\]"):
        test.update([0], torch.zeros(1, 2, 2), torch.full((1, 2, 2), 7))
    with pytest.raises(ValueError, match="NaN"):
        test.update([0], torch.full((1, 2, 2), torch.nan), torch.zeros(1, 2, 2, dtype=torch.int64))
