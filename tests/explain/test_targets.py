"""Targets pick the scores they name, and say so when there is none."""

import pytest
import torch

from lightning_xai.explain.targets import Targets, class_targets, detection_targets, pair_targets

LOGITS = torch.tensor([[0.1, 0.9, 0.3], [2.0, 1.0, 0.0]])


def test_classes():
    assert class_targets(LOGITS).scores.tolist() == pytest.approx([0.9, 2.0])
    assert class_targets(LOGITS, 2).scores.tolist() == pytest.approx([0.3, 0.0])
    several = class_targets(LOGITS, torch.tensor([[0, 1], [1, 2]]), token=3)
    assert several.scores.tolist() == pytest.approx([0.1, 0.9, 1.0, 0.0])
    assert several.samples.tolist() == [0, 0, 1, 1]
    assert several.turns().tolist() == [0, 1, 0, 1]
    assert several.rows["image"].tolist() == [3, 3, 3, 3]
    with pytest.raises(ValueError, match="there is no class 3; the network's go from 0 to 2"):
        class_targets(LOGITS, torch.tensor([0, 3]))


def test_detections():
    logits = torch.arange(24.0).reshape(2, 4, 3)
    samples, queries = torch.tensor([1, 0, 1]), torch.tensor([2, 0, 3])
    found = detection_targets(logits, samples, queries)
    assert found.scores.tolist() == [20, 2, 23]
    assert detection_targets(logits, samples, queries, num_classes=2).scores.tolist() == [19, 1, 22]
    assert detection_targets(logits, samples, queries, torch.tensor([0, 0, 1])).scores.tolist() == [18, 0, 22]
    assert found.turns().tolist() == [0, 0, 1]
    assert found.rows["query"].tolist() == [2, 0, 3]
    with pytest.raises(ValueError, match="there is no query 4; the network's go from 0 to 3"):
        detection_targets(logits, samples, torch.tensor([0, 4, 0]))
    with pytest.raises(ValueError, match="there is no sample 2"):
        detection_targets(logits, torch.tensor([0, 1, 2]), queries)


def test_pairs():
    found = pair_targets(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5, 7]))
    assert found.scores.tolist() == [1, 4]
    assert found.rows["text"].tolist() == [5, 7]
    assert found.rows["image"].tolist() == [0, 0]


def test_one_image_and_several_texts_must_be_repeated():
    with pytest.raises(ValueError, match=r"shape \(1, 3\).*hand in the image 3 times, once for each text"):
        pair_targets(torch.zeros(1, 3), torch.tensor([2, 3, 4]))
    with pytest.raises(ValueError, match=r"text_tokens \(3,\), expected one image for each text"):
        pair_targets(torch.zeros(2, 2), torch.tensor([2, 3, 4]))


def test_where_the_scores_come_from():
    logits = LOGITS.clone().requires_grad_()
    for targets in (
        class_targets(logits, torch.tensor([[0, 1], [1, 2]])),
        pair_targets(logits[:, :2], torch.tensor([5, 7])),
    ):
        assert torch.equal(targets.picked.outputs[targets.picked.at], targets.scores)
        assert not targets.picked.outputs.requires_grad


def test_rows_may_be_weights_of_tokens():
    zero, weights = torch.zeros(2, dtype=torch.int64), torch.tensor([[0.0, 0.5, 0.5], [0.0, 1.0, 0.0]])
    targets = class_targets(LOGITS, torch.tensor([[0, 1], [1, 2]]), rows={"image": weights})
    assert targets.rows["image"].tolist() == [[0, 0.5, 0.5]] * 2 + [[0, 1, 0]] * 2
    with pytest.raises(ValueError, match=r"rows\['image'\] is torch.float32 of shape \(3, 2\), expected a token"):
        Targets(torch.zeros(2), zero, {"image": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match="rows\\['image'\\] holds weights that are NaN or infinite"):
        Targets(torch.zeros(2), zero, {"image": weights / 0})


def test_ill_formed_targets():
    zero = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"samples is torch.int64 of shape \(1,\), expected int64 of shape \(2,\)"):
        Targets(torch.zeros(2), zero[:1], {"image": zero})
    with pytest.raises(ValueError, match="rows is empty"):
        Targets(torch.zeros(2), zero, {})
    with pytest.raises(ValueError, match="at least one target"):
        Targets(torch.zeros(0), zero[:0], {"image": zero[:0]})


def test_class_targets_read_where_the_network_says():
    logits = torch.randn(2, 5)
    targets = class_targets(logits, torch.tensor([[0, 1], [2, 3]]), rows={"query": torch.tensor([7, 9])})
    assert targets.rows["query"].tolist() == [7, 7, 9, 9]


@pytest.mark.parametrize("classes", [torch.tensor([1, 2, 3, 4]), torch.tensor([1.0, 2.0]), torch.zeros(2, 1, 1).long()])
def test_classes_that_fit_no_sample_are_refused(classes):
    with pytest.raises(ValueError, match=r"expected integers of shape \(2,\) or \(2, M\) for 2 samples"):
        class_targets(torch.randn(2, 5), classes)
