"""The log of a run has one line an epoch, also after a run was interrupted or started anew."""

import json
from types import SimpleNamespace

import pytest
import torch

from lightning_xai.callbacks.epoch_log import EpochLog
from lightning_xai.evaluate.detection_ap import AP_NAMES


class Task(torch.nn.Linear):
    device = torch.device("cpu")
    last_ap = dict.fromkeys(AP_NAMES, 0.5)

    def epoch_losses(self, stage):
        return {"loss": 1.0 if stage == "train" else 2.0, "class_error": 40.0}


def trainer(folder, epoch, step):
    return SimpleNamespace(
        default_root_dir=folder,
        current_epoch=epoch,
        global_step=step,
        is_global_zero=True,
        sanity_checking=False,
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])],
    )


def run(folder, epochs, resumed_from=0, every=1):
    log, task = EpochLog(), Task(2, 1)
    log.on_train_start(trainer(folder, epochs[0], resumed_from), task)
    for epoch in epochs:
        log.on_train_epoch_start(trainer(folder, epoch, 10 * epoch), task)
        log.on_train_batch_end(trainer(folder, epoch, 10 * epoch), task)
        if (epoch + 1) % every == 0:
            log.on_validation_end(trainer(folder, epoch, 10 * epoch + 10), task)
        log.on_train_epoch_end(trainer(folder, epoch, 10 * epoch + 10), task)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_keys_of_the_original(tmp_path, capsys):
    run(tmp_path, [0])
    (line,) = lines(tmp_path / "log.jsonl")
    assert line["train_loss"] == 1.0 and line["test_loss"] == 2.0 and line["test_class_error"] == 40.0
    assert line["test_coco_eval_bbox"] == [0.5] * 12
    assert line["epoch"] == 0 and line["n_parameters"] == 3 and line["lr"] == [0.1]
    assert line["seconds_per_step"] >= 0 and line["peak_memory_mib"] > 10
    assert "AP 0.500" in capsys.readouterr().out


def test_epochs_without_validation_have_no_test_numbers(tmp_path):
    run(tmp_path, [0, 1], every=2)
    first, second = lines(tmp_path / "log.jsonl")
    assert "test_loss" not in first and "test_coco_eval_bbox" not in first and "test_loss" in second


@pytest.mark.parametrize("again", [1, 2])
def test_a_resumed_run_repeats_no_line(tmp_path, again):
    run(tmp_path, [0, 1, 2])
    run(tmp_path, [again], resumed_from=10 * again)
    assert [line["epoch"] for line in lines(tmp_path / "log.jsonl")] == list(range(again + 1))


def test_a_new_run_keeps_the_old_log(tmp_path):
    run(tmp_path, [0, 1])
    run(tmp_path, [0])
    assert len(lines(tmp_path / "log.jsonl")) == 1
    assert len(lines(tmp_path / "log.previous1.jsonl")) == 2


def test_a_classifier_has_its_own_scores(tmp_path, capsys):
    task = Task(2, 1)
    task.last_ap, task.last_scores = None, {"acc1": 0.75, "loss": 0.5}
    log = EpochLog()
    log.on_train_start(trainer(tmp_path, 0, 0), task)
    log.on_validation_end(trainer(tmp_path, 0, 10), task)
    log.on_train_epoch_end(trainer(tmp_path, 0, 10), task)
    (line,) = lines(tmp_path / "log.jsonl")
    assert line["test_acc1"] == 0.75 and line["test_loss"] == 0.5 and "test_coco_eval_bbox" not in line
    assert "val acc1 0.7500  val loss 0.5000" in capsys.readouterr().out
