"""Which queries are explained, on outputs whose right answer is known."""

import pytest
import torch

from lightning_xai.tasks.detection import DetectionTask

NAMES = ["", "cat", "dog", "emu"]
# image 0 is 40 x 80, image 1 is 20 x 40 in a batch of 40 x 80
SIZES = torch.tensor([[40, 80], [20, 40]])


def outputs_and_batch():
    """Probabilities of image 0: query 0 dog .9, 1 cat .6, 2 cat .8 (elsewhere), 3 nothing; of image 1: all nothing."""
    p = torch.full((2, 4, 4), 0.01)
    p[0, 0, 2], p[0, 1, 1], p[0, 2, 1], p[0, 3, 3] = 0.9, 0.6, 0.8, 0.3
    boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0], [0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 1.0, 1.0]])
    truth = [
        {"boxes": torch.tensor([[0.0, 0, 5, 5], [41, 0, 80, 40], [0, 0, 40, 38]]), "labels": torch.tensor([1, 1, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    targets = [{**objects, "size": size} for objects, size in zip(truth, SIZES, strict=True)]
    return {"pred_logits": p.logit().requires_grad_(), "pred_boxes": boxes.expand(2, -1, -1)}, {"targets": targets}


@pytest.fixture
def explained(make_net):
    task = DetectionTask(make_net(), NAMES)
    outputs, batch = outputs_and_batch()
    return lambda *choice, **options: task.explained(outputs, batch, *choice, **options)


def queries_of(found):
    return found.targets.rows["query"].tolist()


def test_predicted_are_the_best_kept_ones(explained):
    found = explained()
    assert queries_of(found) == [0, 2, 1] and found.targets.samples.tolist() == [0, 0, 0]
    assert found.names == ("query 0: dog 0.90", "query 2: cat 0.80", "query 1: cat 0.60")
    assert found.classes.tolist() == [2, 1, 1] and found.objects is None
    torch.testing.assert_close(found.boxes[0], torch.tensor([0.0, 0, 40, 40]))
    assert queries_of(explained(limit=2)) == [0, 2]
    assert found.targets.scores.requires_grad
    torch.testing.assert_close(found.targets.scores.sigmoid(), torch.tensor([0.9, 0.8, 0.6]))


def test_kept_are_in_the_order_of_queries(explained):
    assert queries_of(explained("kept")) == [0, 1, 2]
    assert queries_of(explained("kept", limit=2)) == [0, 2]


def test_truth_is_the_best_query_of_the_right_class_on_the_object(explained):
    found = explained("truth")
    # object 0 has no query near it; object 1 is query 1's (query 2 scores cat higher, but lies elsewhere)
    assert (queries_of(found), found.objects.tolist(), found.classes.tolist()) == ([1, 0], [1, 2], [1, 2])
    assert queries_of(explained("truth", limit=1)) == [1]


def test_a_class_and_a_query_are_chosen_in_every_sample(explained):
    for choice in ("class:cat", "class:1"):
        found = explained(choice)
        assert found.targets.samples.tolist() == [0, 1] and queries_of(found)[0] == 2
    assert queries_of(explained("class:cat", limit=2))[:2] == [2, 1]
    found = explained("query:3")
    assert queries_of(found) == [3, 3] and found.classes[0] == 3
    assert explained("query:3:dog").classes.tolist() == [2, 2]
    torch.testing.assert_close(found.boxes[1], torch.tensor([0.0, 0, 40, 20]))


def test_what_there_is_not_is_said(explained):
    with pytest.raises(ValueError, match="no target 'best'; this task explains predicted, kept, truth"):
        explained("best")
    with pytest.raises(ValueError, match=r"no class 'cow'.*cat, dog, emu"):
        explained("class:cow")
    with pytest.raises(ValueError, match="no query '4'; the network's go from 0 to 3"):
        explained("query:4")


def test_nothing_kept_is_a_lookup_error(make_net):
    outputs, batch = outputs_and_batch()
    task = DetectionTask(make_net(), NAMES, threshold=0.95)
    with pytest.raises(LookupError, match=r"'kept': the best score is 0\.90, the threshold 0\.95"):
        task.explained(outputs, batch, "kept")
    batch["targets"][0] |= {"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([1])}
    with pytest.raises(LookupError, match=r"'truth': none lies on an annotated object with an IoU of at least 0\.5"):
        task.explained(outputs, batch, "truth")
    batch["targets"][0]["labels"] = torch.tensor([7])  # annotations of other classes
    with pytest.raises(ValueError, match=r"an annotated object has the label 7, but the network has \d+ classes"):
        task.explained(outputs, batch, "truth")
    batch["targets"] = [batch["targets"][1]] * 2
    with pytest.raises(LookupError, match="'truth': they have no annotated objects"):
        task.explained(outputs, batch, "truth")


def test_prediction_to_be_drawn(make_net):
    task, (outputs, batch) = DetectionTask(make_net(), NAMES), outputs_and_batch()
    found = task.prediction(outputs, batch, 0)
    assert found.lines == found.labels == ("dog 0.90", "cat 0.80", "cat 0.60")
    torch.testing.assert_close(found.boxes[2], torch.tensor([40.0, 0, 80, 40]))
    empty = task.prediction(outputs, batch, 1)
    assert empty.boxes.shape == (0, 4) and empty.lines == ("nothing above 0.50; best: class 0 0.01",)
