"""A test run over several explanation methods, on one process and on two."""

import os
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from lightning_xai.data.embedded_detection import EmbeddedDetectionModule
from lightning_xai.data.scene import SceneRecipe
from lightning_xai.evaluate.measure import Measure, image_ids
from lightning_xai.nets.detr import DETR
from lightning_xai.tasks.detection import DetectionTask
from lightning_xai.tasks.explanation_test import ExplanationTest
from lightning_xai.tasks.relevance_segmentation import RelevanceSegmentation

METHODS = {"ours": {"method": "generic_relevance"}, "rollout": None, "partial_lrp": {"rules": "chefer_conserving"}}


def a_task(threshold=0.3):
    torch.manual_seed(0)
    net = DETR(
        num_classes=6,
        backbone="timm:resnet10t",
        backbone_args={"channels": [8, 8, 16, 16], "stem_width": 8},
        hidden_dim=32,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=2,
        dim_feedforward=32,
        num_queries=10,
    )
    with torch.no_grad():
        net.class_embed.weight.mul_(3)
    return DetectionTask(net, threshold=threshold)


def data():
    recipe = SceneRecipe(height=64, width=64, max_size=40)
    return EmbeddedDetectionModule(recipe, n_test=7, eval_batch_size=2, masks=True)


def trainer(**arguments):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", **quiet, **arguments)


def table_of(test, **arguments):
    trainer(**arguments).test(test, data(), verbose=False)
    return test.last_table


class Noted(Measure):
    """Keeps what it was given."""

    def __init__(self, choice="kept", limit=None):
        self.choice, self.limit = choice, limit

    def begin(self, methods):
        self.methods, self.seen, self.given = methods, [], []

    def see(self, task, outputs, batch):
        self.seen += image_ids(batch)
        assert not outputs["pred_logits"].requires_grad

    def update(self, method, explanation, explained, batch, classify):
        assert classify is None and len(explanation.samples) == len(explained.names)
        self.given.append((method, image_ids(batch)))

    def compute(self):
        return {method: {"batches": sum(given == method for given, _ in self.given)} for method in self.methods}


def test_every_method_sees_every_batch():
    test = ExplanationTest(a_task(), Noted("query:1", 1), METHODS)
    forwards = []
    test.task.net.register_forward_hook(lambda *_: forwards.append(torch.is_inference_mode_enabled()))
    assert table_of(test) == {name: {"batches": 4} for name in METHODS}
    assert test.measure.seen == list(range(7))
    assert len(forwards) == 2 * 4  # one pass for the methods that record alike, one under rules
    assert not any(parameter.grad is not None for parameter in test.parameters())


def test_batches_without_targets_are_seen_and_not_explained():
    test = ExplanationTest(a_task(threshold=1.0), Noted(), ["random"])
    assert table_of(test) == {"random": {"batches": 0}}
    assert test.measure.seen == list(range(7))


def test_checkpoints_of_the_task_fit(tmp_path):
    fitted, file = a_task(), tmp_path / "task.ckpt"
    with torch.no_grad():
        fitted.net.class_embed.bias.fill_(0.25)
    fitted.class_names = ["a", "b"]
    writer = trainer()
    writer.strategy.connect(fitted)
    writer.save_checkpoint(file)
    test = ExplanationTest(a_task(), Noted(), ["random"])
    trainer().test(test, data(), ckpt_path=file, verbose=False)
    assert (test.task.net.class_embed.bias == 0.25).all()
    assert test.task.class_names == data().class_names


def test_what_cannot_be_explained_is_said():
    with pytest.raises(ValueError, match="no explanation method 'ours'; choose from raw_attention"):
        ExplanationTest(a_task(), Noted(), ["ours"])
    with pytest.raises(ValueError, match="methods is empty"):
        ExplanationTest(a_task(), Noted(), {})
    with pytest.raises(TypeError, match="LightningModule cannot be explained: it lacks net"):
        ExplanationTest(pl.LightningModule(), Noted(), ["random"])
    with pytest.raises(ValueError, match="there is no target 'best'"):
        table_of(ExplanationTest(a_task(), Noted("best"), ["random"]))


def test_two_processes_measure_as_one(in_two_processes, tmp_path):
    in_two_processes(__file__, tmp_path)
    table = table_of(ExplanationTest(a_task(), RelevanceSegmentation([0.05]), METHODS))
    assert table["rollout"]["AR100"] > 0
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for method, row in table.items():
            assert found[method] == pytest.approx(row, abs=1e-12, nan_ok=True)


if __name__ == "__main__":  # one of two processes
    found = table_of(
        ExplanationTest(a_task(), RelevanceSegmentation([0.05]), METHODS),
        strategy="ddp",
        devices=2,
        use_distributed_sampler=False,
    )
    torch.save(found, Path(sys.argv[1]) / f"{os.environ['RANK']}.pt")
