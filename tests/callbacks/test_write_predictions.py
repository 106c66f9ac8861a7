"""One line an image, best classes first."""

import csv
from types import SimpleNamespace

import pytest
import torch

from lightning_xai.callbacks.write_predictions import WritePredictions


class Task:
    def name_of(self, index: int) -> str:
        return ["cat", "dog", "emu"][index]


def test_a_table_of_the_best_classes(tmp_path, capsys):
    trainer = SimpleNamespace(
        default_root_dir=tmp_path / "run",
        datamodule=SimpleNamespace(predict_set=SimpleNamespace(path=lambda index: f"pictures/{index}.jpg")),
        world_size=1,
        is_global_zero=True,
    )
    writer = WritePredictions(best=2)
    writer.on_predict_start(trainer, Task())
    shares = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])
    writer.write_on_batch_end(trainer, Task(), {"index": torch.tensor([4, 1]), "logits": shares.log()}, *[None] * 4)
    writer.write_on_batch_end(trainer, Task(), {"index": torch.tensor([4]), "logits": shares[:1].log()}, *[None] * 4)
    writer.write_on_epoch_end(trainer)
    with open(tmp_path / "run" / "predictions.csv", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows == [
        ["index", "file", "class_1", "probability_1", "class_2", "probability_2"],
        ["1", "pictures/1.jpg", "cat", "0.500000", "emu", "0.300000"],
        ["4", "pictures/4.jpg", "dog", "0.700000", "emu", "0.200000"],
    ]
    assert "predictions of 2 images" in capsys.readouterr().out


def test_no_class_is_no_prediction():
    with pytest.raises(ValueError, match="best=0 must be at least 1 class"):
        WritePredictions(best=0)
