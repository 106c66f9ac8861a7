"""MAE's loop against one written out by hand: rates, accumulation, left-over batches, resuming, what stops a run."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_xai.tasks.mae_recipe import MAERecipe
from lightning_xai.tasks.mae_schedule import rate_at

EPOCHS, BATCHES, SIZE = 4, 5, 2


class Regression(MAERecipe):
    """The smallest task of this recipe: a linear map, whose bias learns at half the rate."""

    def __init__(self, **options):
        super().__init__(min_lr=1e-3, warmup_epochs=1, **options)
        torch.manual_seed(0)
        self.net = nn.Linear(3, 1)

    def configure_optimizers(self):
        return optimizer_of(self.net)

    def training_step(self, batch, batch_idx):
        return self.finite((self.net(batch["x"]) - batch["y"]).square().mean(), batch, batch_idx)


def optimizer_of(net: nn.Linear) -> torch.optim.Optimizer:
    groups = [{"params": [net.weight]}, {"params": [net.bias], "lr_scale": 0.5}]
    return torch.optim.AdamW(groups, lr=0.0)


def samples(count: int = BATCHES * SIZE) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, generator=generator)
    return [{"x": x[i], "y": x[i].sum(0, keepdim=True) + 1, "index": torch.tensor(i)} for i in range(count)]


def trainer(**options) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**{"accelerator": "cpu", "max_epochs": EPOCHS, "enable_checkpointing": False} | quiet | options)


def loader(**options) -> DataLoader:
    return DataLoader(samples(), batch_size=SIZE, **options)


def by_hand(accumulated: int, drop_leftover: bool, lr: float) -> tuple[nn.Linear, int]:
    """The weights that MAE's loop ends with, and how many updates it makes."""
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    optimizer, updates = optimizer_of(net), 0
    for epoch in range(EPOCHS):
        optimizer.zero_grad()
        for i, batch in enumerate(loader()):
            if i % accumulated == 0:
                rate = rate_at(epoch + i / BATCHES, lr, 1e-3, 1, EPOCHS)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("lr_scale", 1.0)
            ((net(batch["x"]) - batch["y"]).square().mean() / accumulated).backward()
            if (i + 1) % accumulated == 0 or (i + 1 == BATCHES and not drop_leftover):
                optimizer.step()
                optimizer.zero_grad()
                updates += 1
    return net, updates


@pytest.mark.parametrize("accumulated, drop_leftover, updates", [(1, True, 20), (2, True, 8), (2, False, 12)])
def test_a_run_is_that_of_the_plain_loop(accumulated, drop_leftover, updates):
    expected, made = by_hand(accumulated, drop_leftover, lr=0.1)
    assert made == updates
    task = Regression(lr=0.1, drop_leftover=drop_leftover)
    trainer(accumulate_grad_batches=accumulated).fit(task, loader())
    torch.testing.assert_close(task.net.weight, expected.weight)
    torch.testing.assert_close(task.net.bias, expected.bias)
    start = Regression().net
    assert task.net.weight.sub(start.weight).abs().min() > 0.05  # and it moved


def test_the_rate_comes_from_the_effective_batch(capsys):
    task = Regression(blr=0.64)
    trainer(max_epochs=2, accumulate_grad_batches=2).fit(task, loader())
    assert task.effective_lr == pytest.approx(0.01)
    said = "effective batch size 4 = 2 images x 2 accumulated x 1 processes, lr 0.01 = blr 0.64 x 4 / 256"
    assert said in capsys.readouterr().out


def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(tmp_path):
    whole, first, rest = (Regression(lr=0.1) for _ in range(3))
    trainer(accumulate_grad_batches=2).fit(whole, loader())

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, task):
            trainer.should_stop = trainer.current_epoch == 1

    stopped = trainer(accumulate_grad_batches=2, callbacks=[Stop()])
    stopped.fit(first, loader())
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    trainer(accumulate_grad_batches=2).fit(rest, loader(), ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(rest.net.weight, whole.net.weight) and not torch.equal(first.net.weight, whole.net.weight)


def test_the_mean_loss_of_an_epoch():
    class Frozen(Regression):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            optimizer_closure()

    task = Frozen(lr=0.1)
    trainer(max_epochs=2).fit(task, loader())
    expected = [(task.net(batch["x"]) - batch["y"]).square().mean().item() for batch in loader()]
    assert task.epoch_losses("train")["loss"] == pytest.approx(sum(expected) / BATCHES)
    assert task.epoch_losses("val") == {}


def test_a_loss_that_is_not_finite_names_the_images():
    bad = samples()
    bad[3]["y"] = torch.tensor([math.nan])
    with pytest.raises(FloatingPointError, match=r"epoch 0, batch 1, step 1: process 0, image ids \[2, 3\]: loss nan"):
        trainer().fit(Regression(lr=0.1), DataLoader(bad, batch_size=2))


@pytest.mark.parametrize(
    "options, task, words",
    [
        ({"max_epochs": 1}, {}, "warmup_epochs=1 must be less than the trainer's max_epochs=1"),
        ({"max_epochs": -1, "max_steps": 3}, {}, "max_epochs=-1"),
        ({"accumulate_grad_batches": 6}, {}, "an epoch has 5 batches, but accumulate_grad_batches=6"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(options, task, words):
    with pytest.raises(ValueError, match=words):
        trainer(**options).fit(Regression(lr=0.1, **task), loader())


def test_what_is_no_number_of_this_recipe():
    with pytest.raises(ValueError, match="blr=-1 must be a finite number of at least 0"):
        Regression(blr=-1)
    with pytest.raises(ValueError, match="needs the loader's batch size, which is not known: set lr"):
        trainer().fit(Regression(), DataLoader(list(loader()), batch_size=None))
    with pytest.raises(TypeError, match=r"batch\['images'\] is torch.float32, but images are uint8"):
        Regression().prepare({"images": torch.zeros(1, 3, 2, 2)})


def test_images_are_normalised_as_imagenet_is():
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 1, 1).contiguous()
    (found,) = Regression().prepare({"images": images})
    expected = (images / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    torch.testing.assert_close(found, expected)
    assert images[2].eq(255).all()
    (found,) = Regression(pixel_mean=[0.5] * 3, pixel_std=[0.5] * 3).prepare({"images": images})
    torch.testing.assert_close(found, images / 127.5 - 1)
    with pytest.raises(ValueError, match=r"pixel_mean=\[124, 116, 104\] must be three numbers .* in \[0, 1\]"):
        Regression(pixel_mean=[124, 116, 104])
