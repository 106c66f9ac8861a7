"""Accuracies counted by hand, and by torchmetrics."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_xai.tasks.classification_scores import ClassificationScores, score_table


def test_counts_of_a_known_table():
    scores = ClassificationScores()
    logits = torch.tensor([[3.0, 2, 1, 0, -1, -2, -3], [3.0, 2, 1, 0, -1, -2, -3], [0.0, 1, 2, 3, 4, 5, 6]])
    scores.update(logits[:2], torch.tensor([0, 4]), torch.tensor([7, 2]), torch.tensor([1.0, 2.0]))
    scores.update(logits[2:], torch.tensor([0]), torch.tensor([4]), torch.tensor([6.0]))
    numbers, samples = scores.compute()
    assert numbers == {"acc1": 1 / 3, "acc5": 2 / 3, "loss": 3.0}
    assert samples["index"].tolist() == [2, 4, 7] and samples["label"].tolist() == [4, 0, 0]
    assert samples["predicted"].tolist() == [0, 6, 0] and samples["correct"].tolist() == [False, False, True]
    assert score_table(numbers, 3) == "top-1 33.33 %  top-5 66.67 %  loss 3.0000  (3 images)"


def test_like_torchmetrics_whatever_the_batches():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 9, generator=generator), torch.randint(0, 9, (50,), generator=generator)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    found = []
    for size in (50, 7):
        scores = ClassificationScores()
        for part in torch.arange(50).split(size):
            scores.update(logits[part], labels[part], part, losses[part])
        found.append(scores.compute()[0])
    assert found[0] == found[1]
    for name, k in (("acc1", 1), ("acc5", 5)):
        expected = multiclass_accuracy(logits, labels, 9, average="micro", top_k=k)
        assert found[0][name] == pytest.approx(expected.item())
    assert found[0]["loss"] == pytest.approx(losses.mean().item(), rel=1e-6)


def test_a_sample_that_comes_twice_counts_once():
    scores = ClassificationScores()
    logits = torch.eye(3)
    scores.update(logits, torch.tensor([0, 2, 2]), torch.tensor([5, 6, 0]), torch.tensor([1.0, 2.0, 3.0]))
    scores.update(logits[1:2], torch.tensor([2]), torch.tensor([6]), torch.tensor([2.0]))
    numbers, samples = scores.compute()
    assert numbers == {"acc1": 2 / 3, "acc5": 1.0, "loss": 2.0}
    assert samples["index"].tolist() == [0, 5, 6] and samples["correct"].tolist() == [True, True, False]


def test_few_classes_and_no_samples():
    scores = ClassificationScores()
    scores.update(torch.eye(3), torch.tensor([0, 1, 1]), torch.arange(3), torch.zeros(3))
    assert scores.compute()[0]["acc5"] == 1.0
    scores.reset()
    with pytest.raises(ValueError, match="no samples to score"):
        scores.compute()
