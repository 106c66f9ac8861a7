"""Several methods on one batch."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lightning_xai.explain.explain_batch import explain_batch, methods_by_name
from lightning_xai.explain.explainable import Choice, Explained
from lightning_xai.explain.explanation import explain
from lightning_xai.explain.rollout import Rollout
from lightning_xai.explain.targets import class_targets

METHODS = {"rollout": {}, "ours": {"method": "generic_relevance"}, "lrp": {"method": "transformer_attribution"}}


class Task:
    """Explains the predicted or the true class of a bag of tokens."""

    def __init__(self, net):
        self.net = net
        self.forwards = 0
        self.net.register_forward_pre_hook(self.count)

    def count(self, module, inputs):
        self.forwards += 1

    def prepare(self, batch):
        return (batch["tokens"],)

    def explained(self, outputs, batch, choice="predicted", limit=None):
        truth = Choice.parse(choice, ("predicted", "truth")).kind == "truth"
        if truth and (batch["labels"] < 0).all():
            raise LookupError("no label is known")
        classes = batch["labels"] if truth else outputs.detach().argmax(1)
        return Explained(class_targets(outputs, classes), tuple(f"class {c}" for c in classes.tolist()), classes)


@pytest.fixture
def batch(image_tokens):
    return {"tokens": image_tokens, "labels": torch.tensor([3, 0, 4])}


@pytest.fixture
def task(classifier):
    return Task(classifier)


def test_each_method_says_what_it_says_alone(task, batch):
    found = explain_batch(task, batch, methods_by_name(METHODS), "truth")
    assert task.forwards == 2  # rollout and generic relevance read one recording
    assert list(found.by_method) == list(METHODS) and found.explained.names == ("class 3", "class 0", "class 4")
    for name, method in methods_by_name(METHODS).items():
        alone = explain(task.net, (batch["tokens"],), lambda outputs: class_targets(outputs, batch["labels"]), method)
        torch.testing.assert_close(found.by_method[name].relevance["image"], alone.relevance["image"])
    scores = found.explained.targets.scores
    assert not scores.requires_grad and not found.outputs.requires_grad
    torch.testing.assert_close(scores, found.outputs[torch.arange(3), batch["labels"]])


class Halved:
    """An intervention: the input's tokens are halved."""

    @contextmanager
    def applied(self, net):
        hook = net.register_forward_pre_hook(lambda _, inputs: (inputs[0] / 2,))
        try:
            yield
        finally:
            hook.remove()


def test_what_is_explained_is_what_the_task_says_under_its_intervention(task, batch):
    task.intervention = Halved()
    found = explain_batch(task, batch, methods_by_name(METHODS))
    del task.intervention
    expected = explain_batch(task, {**batch, "tokens": batch["tokens"] / 2}, methods_by_name(METHODS))
    torch.testing.assert_close(found.outputs, expected.outputs)
    for name in METHODS:
        torch.testing.assert_close(found.by_method[name].relevance, expected.by_method[name].relevance)


def test_in_inference_mode_with_a_batch_made_there(task, batch):
    expected = explain_batch(task, batch, methods_by_name(METHODS), "truth")
    with torch.inference_mode():
        made = {name: value.clone() for name, value in batch.items()}
        found = explain_batch(task, made, methods_by_name(METHODS), "truth")
    for name in METHODS:
        assert torch.equal(found.by_method[name].relevance["image"], expected.by_method[name].relevance["image"])


def test_some_targets_are_kept_and_a_batch_without_any_is_no_error(task, batch):
    kept = explain_batch(task, batch, {"rollout": Rollout()}, "truth", keep=lambda found: found.only([2]))
    assert kept.explained.names == ("class 4",) and kept.by_method["rollout"].relevance["image"].shape == (1, 9)
    without = explain_batch(task, {**batch, "labels": torch.full((3,), -1)}, methods_by_name(METHODS), "truth")
    assert without.explained is None and without.by_method == {} and without.without == "no label is known"
    assert without.outputs.shape == (3, 5)


def test_errors(task, batch):
    with pytest.raises(ValueError, match="no target 'kept'; this task explains predicted, truth"):
        explain_batch(task, batch, methods_by_name(METHODS), "kept")
    with pytest.raises(ValueError, match="methods is empty"):
        methods_by_name([])
    with pytest.raises(ValueError, match="no explanation method 'ours'"):
        methods_by_name({"ours": {"start_layer": 1}})
    with pytest.raises(ValueError, match="rollout has no option 'layer'"):
        methods_by_name({"rollout": {"layer": 1}})
    task.net = nn.Linear(16, 5).double()
    with pytest.raises(TypeError, match="Linear declares no attention sites"):
        explain_batch(task, batch, methods_by_name(METHODS))
