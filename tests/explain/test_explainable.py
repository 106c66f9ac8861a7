"""What a task says of itself so that it can be explained."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_xai.explain.explainable import Choice, Explained, explainable_task, require_explainable
from lightning_xai.explain.targets import Targets

NAMES = ["", "cat", "dog"]
ALL = ("predicted", "truth", "kept", "class", "query")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("predicted", Choice("predicted")),
        ("kept", Choice("kept")),
        ("class:dog", Choice("class", class_index=2)),
        ("class:1", Choice("class", class_index=1)),
        ("query:7", Choice("query", query=7)),
        ("query:0:dog", Choice("query", query=0, class_index=2)),
        ("query:0:2", Choice("query", query=0, class_index=2)),
    ],
)
def test_choices_are_read(text, expected):
    assert Choice.parse(text, ALL, 3, NAMES, 8) == expected


def test_a_name_with_a_colon_is_a_name():
    assert Choice.parse("class:sign: stop", ALL, 2, ["way", "sign: stop"]).class_index == 1


@pytest.mark.parametrize(
    "text, offered, said",
    [
        (
            "best",
            ALL,
            "no target 'best'; this task explains predicted, truth, kept, class:NAME or class:INDEX, query:Q",
        ),
        ("kept", ("predicted", "class"), "no target 'kept'; this task explains predicted, class:NAME"),
        ("class", ALL, "no target 'class'"),
        ("predicted:3", ALL, "no target 'predicted:3'"),
        ("class:cow", ALL, "no class 'cow'; they go from 0 to 2: cat, dog"),
        ("class:3", ALL, "no class '3'"),
        ("class:-1", ALL, "no class '-1'"),
        ("query:8", ALL, "no query '8'; the network's go from 0 to 7"),
        ("query:x", ALL, "no query 'x'"),
        ("query:1:cow", ALL, "no class 'cow'"),
    ],
)
def test_what_there_is_not_is_refused(text, offered, said):
    with pytest.raises(ValueError, match=said):
        Choice.parse(text, offered, 3, NAMES, 8)


def targets(count):
    index = torch.arange(count)
    return Targets(index.float(), index, {"query": index + 10, "pooled": torch.eye(count)})


def test_some_of_the_targets():
    boxes = torch.arange(12.0).view(3, 4)
    explained = Explained(targets(3), ("a", "b", "c"), torch.tensor([5, 6, 7]), boxes, torch.tensor([2, 0, 1]))
    some = explained.only([2, 0])
    assert some.names == ("c", "a") and some.classes.tolist() == [7, 5] and some.objects.tolist() == [1, 2]
    assert some.targets.rows["query"].tolist() == [12, 10] and some.targets.samples.tolist() == [2, 0]
    assert some.targets.rows["pooled"].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert torch.equal(some.boxes, boxes[[2, 0]])
    assert explained.only([1]).objects.tolist() == [0]
    with pytest.raises(LookupError, match="none of 3 targets is kept"):
        explained.only([])


def test_captions_fit_the_targets():
    with pytest.raises(ValueError, match="2 names, 1 boxes do not fit 3 targets"):
        Explained(targets(3), ("a", "b"), torch.zeros(3), torch.zeros(1, 4))


def test_what_a_task_lacks_is_named():
    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 2)

        def prepare(self, batch): ...

        def explained(self, outputs, batch, choice, limit): ...

    with pytest.raises(TypeError, match=r"Task .* lacks prediction\(...\), net.sites\(...\), net.streams\(...\)"):
        require_explainable(Task())
    with pytest.raises(TypeError, match=r"object cannot be explained: it lacks net, prepare"):
        require_explainable(object())


def test_the_task_inside_a_model_that_measures_it():
    class Net(nn.Module):
        def sites(self): ...

        def streams(self, outputs): ...

    task = SimpleNamespace(net=Net(), prepare=0, explained=0, prediction=0)
    assert explainable_task(task) is explainable_task(SimpleNamespace(task=task)) is task
    with pytest.raises(TypeError, match="Linear cannot be explained"):
        explainable_task(nn.Linear(2, 2))
