"""Training, validation and prediction through the trainer."""

import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from torch.utils.data import DataLoader

from lightning_xai.tasks.detection import DetectionTask, relative_targets
from lightning_xai.tasks.parameter_groups import make_optimizer, parameter_groups


def loader(batches):
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)


def make_trainer(**arguments):
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**(defaults | arguments))


class Lines(Logger):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.lines = []

    name = version = "lines"

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, metrics))


class Rates(pl.Callback):
    """The learning rates during each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *args):
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(.*num_workers.*|.*val_dataloader.*|.*treespec.*|.*log_every_n_steps.*)")
        yield


@pytest.mark.parametrize("class_scores", ["sigmoid", "softmax"])
def test_fit_with_accumulation_equals_a_bare_loop(make_net, make_batch, class_scores):
    batches = [make_batch(ids, classes=3) for ids in ([1, 2], [4, 5], [7, 0], [3, 8])]
    task = DetectionTask(make_net(), lr=0.01, clip_max_norm=0.1, class_scores=class_scores)
    make_trainer(accumulate_grad_batches=2).fit(task, loader(batches))

    bare = DetectionTask(make_net(), lr=0.01, class_scores=class_scores)
    optimizer = make_optimizer(parameter_groups(bare.net, lr=0.01), "adamw", 1e-4)
    for pair in (batches[:2], batches[2:]):
        optimizer.zero_grad()
        for batch in pair:
            outputs = bare.net(*bare.prepare(batch))
            (bare.criterion(outputs, relative_targets(batch["targets"])).total / 2).backward()
        torch.nn.utils.clip_grad_norm_(bare.net.parameters(), 0.1)
        optimizer.step()
    for own, other in zip(task.net.parameters(), bare.net.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def test_losses_reach_the_loggers_every_n_steps_and_the_epoch_as_means(make_net, make_batch):
    batches = [make_batch([i, i + 1]) for i in range(1, 6)]
    logger, task = Lines(), DetectionTask(make_net(), lr=0.0, lr_backbone=0.0)
    make_trainer(logger=logger, log_every_n_steps=2).fit(task, loader(batches))
    each = [task.criterion(task(*task.prepare(b)), relative_targets(b["targets"])) for b in batches]
    lines = [(step, metrics) for step, metrics in logger.lines if "train/loss" in metrics]
    assert [step for step, _ in lines] == [2, 4]
    totals = [float(losses.total.detach()) for losses in each]
    assert lines[1][1]["train/loss"] == pytest.approx(sum(totals[2:4]) / 2, rel=1e-5)
    assert {"train/loss_ce", "train/loss_giou_0", "train/class_error", "train/grad_norm"} <= lines[0][1].keys()
    means = task.epoch_losses("train")
    assert means["loss"] == pytest.approx(sum(totals) / 5, rel=1e-5)
    boxes = [float(losses.as_dict()["loss_bbox_0"].detach()) for losses in each]
    assert means["loss_bbox_0_unscaled"] == pytest.approx(sum(boxes) / 5, rel=1e-5)
    assert means["loss_bbox_0"] == pytest.approx(5 * sum(boxes) / 5, rel=1e-5)


def test_validation_test_and_prediction_agree(make_net, make_batch):
    batches, task = [make_batch([1, 2]), make_batch([5, 4])], DetectionTask(make_net())
    trainer = make_trainer()
    trainer.validate(task, loader(batches), verbose=False)
    validated = task.last_ap
    assert len(validated) == 12 and 0 <= validated["AP50"] <= 1
    assert trainer.callback_metrics["val/AP"] == pytest.approx(validated["AP"])
    assert trainer.callback_metrics["val/loss"] == pytest.approx(task.epoch_losses("val")["loss"], rel=1e-5)
    trainer.test(task, loader(batches), verbose=False)
    assert task.last_ap == validated

    predicted = [image for batch in trainer.predict(task, loader(batches)) for image in batch]
    assert [image["image_id"] for image in predicted] == [1, 2, 5, 4]
    assert {"boxes", "scores", "labels", "queries"} <= predicted[0].keys()
    truths = [target["ground_truth"] for batch in batches for target in batch["targets"]]
    task.ap.reset()
    task.ap.update([1, 2, 5, 4], predicted, truths)
    assert task.ap.compute() == validated


def test_perfect_network_has_an_ap_of_one(make_batch):
    batch = make_batch([2, 1, 5])

    class Oracle(torch.nn.Module):
        def forward(self, images, mask):
            logits, boxes = torch.full((3, 26, 4), -9.0), torch.full((3, 26, 4), 0.01)
            for image, target in enumerate(relative_targets(batch["targets"])):
                count = len(target["labels"])
                boxes[image, :count] = target["boxes"]
                logits[image, range(count), target["labels"]] = 9.0
            return {"pred_logits": logits, "pred_boxes": boxes}

    task = DetectionTask(Oracle())
    make_trainer().validate(task, loader([batch]), verbose=False)
    assert task.last_ap["AP"] == pytest.approx(1.0)
    assert task.epoch_losses("val")["loss_giou"] == pytest.approx(0, abs=1e-5)


def test_sanity_check_leaves_no_ap(make_net, make_batch):
    task, seen = DetectionTask(make_net()), []

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(pl_module.last_ap)

    batches = loader([make_batch([1, 2])])
    make_trainer(callbacks=[Look()], num_sanity_val_steps=1).fit(task, batches, batches)
    assert seen == [None] and task.last_ap is not None


def test_images_are_normalised_on_the_device_and_zero_on_padding(make_net, make_batch):
    batch, task = make_batch([1, 2]), DetectionTask(make_net())
    images, mask = task.prepare(batch)
    expected = (batch["images"][0, 1, 3, 5] / 255 - 0.456) / 0.224
    torch.testing.assert_close(images[0, 1, 3, 5], expected)
    assert (images[1, :, :, -8:] == 0).all() and mask[1, :, -8:].all()
    assert batch["images"].dtype == torch.uint8
    with pytest.raises(TypeError, match="float32, but images are uint8"):
        task.prepare({**batch, "images": images})


@pytest.mark.parametrize("named", ["pred_boxes", "pred_logits"])
def test_not_finite_predictions_stop_training_with_a_name(make_net, make_batch, named):
    match = rf"epoch 0, batch 1, step 1: process 0, image ids \[4, 2\]: .*{named}"
    with pytest.raises(FloatingPointError, match=match):
        task = DetectionTask(NanLater(make_net(), named))
        make_trainer().fit(task, loader([make_batch([1, 2]), make_batch([4, 2])]))


def test_not_finite_gradients_leave_the_weights_as_they_are(make_net, make_batch):
    task = DetectionTask(make_net(), clip_max_norm=0.0)
    weights = {name: value.clone() for name, value in task.net.state_dict().items()}
    task.net.get_submodule("class_embed").weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(FloatingPointError, match="gradients are not finite in epoch 0, step 0"):
        make_trainer().fit(task, loader([make_batch([1, 2])]))
    assert all(torch.equal(value, weights[name]) for name, value in task.net.state_dict().items())


class NanLater(torch.nn.Module):
    """The network's outputs `named` are not numbers after its first forward pass."""

    def __init__(self, net, named):
        super().__init__()
        self.net, self.named, self.calls = net, named, 0

    def forward(self, images, mask):
        outputs = self.net(images, mask)
        self.calls += 1
        return outputs if self.calls == 1 else {**outputs, self.named: outputs[self.named] * torch.nan}


def test_infinite_loss_that_matching_did_not_see_is_named(make_net, make_batch):
    net = make_net()
    with torch.no_grad():
        net.class_embed.bias[0] = torch.inf  # query 0 of the first layer, class 0
    batch = make_batch([3, 6])  # without objects, nothing is matched
    with pytest.raises(FloatingPointError, match=r"image ids \[3, 6\]: not finite: loss_ce_0\."):
        make_trainer().fit(DetectionTask(net), loader([batch]))


def test_new_flags_win_on_resuming(make_net, make_batch, tmp_path):
    batches, file = loader([make_batch([1, 2])]), tmp_path / "run.ckpt"
    trainer = make_trainer(max_epochs=4)
    trainer.fit(DetectionTask(make_net(), lr=1e-3, lr_backbone=1e-4, lr_drop=40), batches)
    trainer.save_checkpoint(file)
    rates = Rates()
    task = DetectionTask(make_net(), lr=2e-3, lr_backbone=1e-4, lr_drop=3)
    make_trainer(max_epochs=7, callbacks=[rates]).fit(task, batches, ckpt_path=file)
    expected = [[2e-4, 1e-5, 2e-5]] * 2 + [[2e-5, 1e-6, 2e-6]]  # epochs 4, 5 and 6
    torch.testing.assert_close(torch.tensor(rates.seen), torch.tensor(expected))


def test_schedules_of_steps_end_with_the_training(make_net, make_batch):
    batches = loader([make_batch([1, 2])] * 5)
    for schedule, first, peak in (("cosine", 0.01, 0), ("onecycle", 0.01 / 25, 3)):
        rates = Rates()
        task = DetectionTask(make_net(), lr=0.01, schedule=schedule)
        make_trainer(max_epochs=2, callbacks=[rates]).fit(task, batches)
        others = [step[0] for step in rates.seen]
        assert others[0] == pytest.approx(first)
        assert max(others) == others[peak] == pytest.approx(0.01)
        assert others[-1] < 0.03 * 0.01
    with pytest.raises(ValueError, match="'cosine' needs an end"):
        make_trainer(max_epochs=-1).fit(DetectionTask(make_net(), schedule="cosine"), batches)


def test_arguments_that_do_not_go_together(make_net, make_batch):
    with pytest.raises(ValueError, match="schedule='linear' is unknown"):
        DetectionTask(make_net(), schedule="linear")
    with pytest.raises(ValueError, match=r"warmup=0.1 needs schedule='cosine' or 'onecycle'"):
        DetectionTask(make_net(), warmup=0.1)
    with pytest.raises(ValueError, match=r"warmup=500 must be a share"):
        DetectionTask(make_net(), schedule="cosine", warmup=500)
    with pytest.raises(ValueError, match="drop_class_heads=True needs a checkpoint"):
        DetectionTask(make_net(), drop_class_heads=True)
    with pytest.raises(ValueError, match=r"clip_max_norm=0.1, but the trainer's gradient_clip_val is 1.0"):
        make_trainer(gradient_clip_val=1.0).fit(DetectionTask(make_net()), loader([make_batch([1])]))


def test_effective_batch_size_is_said_and_a_rate_too_high_is_warned_of(make_net, make_batch, capsys):
    samples = DataLoader([1, 2, 4, 5], batch_size=2, collate_fn=make_batch)
    with pytest.warns(UserWarning, match=r"lr=0.0002 with an effective batch size of 4: .* about lr=2.5e-05"):
        make_trainer(accumulate_grad_batches=2).fit(DetectionTask(make_net()), samples)
    assert "effective batch size 4 = 2 images x 2 accumulated x 1 processes, lr 0.0002" in capsys.readouterr().out
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer().fit(DetectionTask(make_net(), lr=1.25e-5), samples)
    assert not [w for w in caught if "effective batch size" in str(w.message)]


def test_bfloat16_training(make_net, make_batch):
    task, logger = DetectionTask(make_net()), Lines()
    before = task.net.class_embed.weight.detach().clone()
    make_trainer(precision="bf16-mixed", logger=logger, log_every_n_steps=1).fit(task, loader([make_batch([1, 2])]))
    assert not torch.equal(before, task.net.class_embed.weight)
    assert logger.lines[0][1]["train/loss"] > 0


def test_intervention_surrounds_the_forward_pass(make_net, make_batch):
    class Zeroed:
        @contextmanager
        def applied(self, net):
            handle = net.register_forward_hook(lambda m, i, out: {**out, "pred_logits": 0 * out["pred_logits"]})
            yield
            handle.remove()

    task, batch = DetectionTask(make_net(), intervention=Zeroed()), make_batch([1, 2])
    assert (task(*task.prepare(batch))["pred_logits"] == 0).all()
    assert (task.net(*task.prepare(batch))["pred_logits"] != 0).any()


def test_class_names_come_from_the_data_module(make_net, make_batch):
    class Data(pl.LightningDataModule):
        class_names = ("", "circle", "square", "star")

        def val_dataloader(self):
            return loader([make_batch([1, 2])])

    task = DetectionTask(make_net())
    make_trainer().validate(task, datamodule=Data(), verbose=False)
    assert task.class_names == Data.class_names


def test_two_processes_train_as_one_and_stop_together(in_two_processes, tmp_path, make_net, make_batch):
    in_two_processes(__file__, tmp_path)
    task = DetectionTask(make_net(), lr=0.01)
    make_trainer().fit(task, loader([make_batch([1, 4, 2, 5, 8])]))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in task.net.state_dict().items():
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(first["weights"][name], second["weights"][name])
    assert first["losses"] == second["losses"]
    assert first["losses"]["loss"] == pytest.approx(task.epoch_losses("train")["loss"], rel=1e-5)
    for said in (first["error"], second["error"]):
        assert "epoch 0, batch 0" in said and "process 1, image ids [2, 7]" in said and "process 0" not in said


def process(folder: Path) -> None:
    """One of two processes: a step on its share of the batch, then one where only the second process goes wrong."""
    from conftest import tiny_batch, tiny_net

    rank = int(os.environ["RANK"])
    settings = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    whole = tiny_batch([1, 4, 2, 5, 8])
    chosen = slice(0, 2) if rank == 0 else slice(2, 5)
    task = DetectionTask(tiny_net(), lr=0.01)
    make_trainer(**settings).fit(task, loader([{name: values[chosen] for name, values in whole.items()}]))
    result = {"weights": task.net.state_dict(), "losses": task.epoch_losses("train")}

    broken = tiny_net()
    if rank == 1:
        broken.register_forward_hook(lambda m, i, out: {**out, "pred_boxes": out["pred_boxes"] * torch.nan})
    try:
        make_trainer(**settings).fit(DetectionTask(broken), loader([tiny_batch([1, 2] if rank == 0 else [2, 7])]))
        result["error"] = ""
    except FloatingPointError as error:
        result["error"] = str(error)
    torch.save(result, folder / f"{rank}.pt")


if __name__ == "__main__":
    process(Path(sys.argv[1]))
