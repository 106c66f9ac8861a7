"""A test run that explains every batch by several methods and measures how true each of them is."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_xai.evaluate.measure import Measure, Numbers
from lightning_xai.explain.explain_batch import explain_batch, methods_by_name
from lightning_xai.explain.explainable import require_explainable

INNER = "task."


class ExplanationTest(pl.LightningModule):
    """Explain what `task` says of the test data by each of `methods`, and let `measure` say how true it is.

    task: explainable, see `Explainable`. methods: names of methods, or a name of your own for each with its options and
    the method it stands for where the name does not say it, e.g. {"ours": {"method": "generic_relevance", "normalise":
    False}, "random": {}}. Checkpoints of the task load as they are. After a test `last_table` holds the numbers of each
    method, the same on every process.

    Raises ValueError for a method or an option that does not exist, TypeError where the task cannot be explained.
    """

    def __init__(self, task: pl.LightningModule, measure: Measure, methods: list[str] | dict[str, dict | None]):
        super().__init__()
        require_explainable(task)
        self.task = task
        self.measure = measure
        self.methods = methods_by_name(methods)
        self.last_table: dict[str, Numbers] | None = None

    def setup(self, stage: str) -> None:
        self.task.setup(stage)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint of the task has the names that its weights have without us."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            name if name.startswith(INNER) else INNER + name: value for name, value in weights.items()
        }
        self.task.on_load_checkpoint(checkpoint)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return self.task.transfer_batch_to_device(batch, device, dataloader_idx)

    def on_test_epoch_start(self) -> None:
        self.measure.begin(list(self.methods))

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        found = explain_batch(self.task, batch, self.methods, self.measure.choice, self.measure.limit)
        self.measure.see(self.task, found.outputs, batch)
        for name, explanation in found.by_method.items():
            self.measure.update(name, explanation, found.explained, batch, getattr(self.task, "classify", None))

    def on_test_epoch_end(self) -> None:
        table = self.measure.compute()
        self.last_table = table
        metrics = {f"{method}/{name}": value for method, row in table.items() for name, value in row.items()}
        for logger in self.loggers:
            logger.log_metrics(metrics)

    def forward(self, *inputs: Tensor) -> Any:
        return self.task(*inputs)
