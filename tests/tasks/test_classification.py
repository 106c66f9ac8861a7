"""Fine-tuning a small vision transformer: what it learns from, what it says, its numbers on one and two processes."""

import math
import os
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_xai.data.classification_batch import collate_classification
from lightning_xai.data.samplers import EvaluationSampler, strided_order
from lightning_xai.explain.explanation import explain
from lightning_xai.explain.generic_relevance import GenericRelevance
from lightning_xai.nets.vit import ViT, build_vit
from lightning_xai.tasks.classification import ClassificationTask

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 3}
NAMES = ["red", "green", "blue"]


def small_vit(**changes) -> ViT:
    torch.manual_seed(0)
    return build_vit("timm:vit_tiny_patch16_224", SMALL | {"global_pool": "avg"} | changes)


class Colours(Dataset):
    """Noise in which the channel of the class is brighter; `erased` marks the first column."""

    def __init__(self, length: int = 22, erased: bool = False):
        self.length, self.erased = length, erased

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 100, (3, 16, 16), generator=generator, dtype=torch.uint8)
        image[index % 3] += 60
        target = {"label": torch.tensor(index % 3), "index": torch.tensor(index)}
        if self.erased:
            target["erased"] = torch.zeros(16, 16, dtype=torch.bool).index_fill_(1, torch.tensor([0]), True)
        return image, target


def loader(length: int = 22, batch_size: int = 4, **options) -> DataLoader:
    return DataLoader(Colours(length), batch_size, collate_fn=collate_classification, **options)


def a_batch(count: int = 4) -> dict:
    return collate_classification([Colours()[index] for index in range(count)])


def make_trainer(**options) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"accelerator": "cpu", "max_epochs": 3, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return pl.Trainer(**settings | quiet | options)


@pytest.mark.parametrize("options", [{}, {"mixup": 0.8, "cutmix": 1.0}], ids=["plain", "mixed"])
def test_it_learns_colours(options):
    task = ClassificationTask(small_vit(drop_path_rate=0.1), NAMES, lr=2e-2, warmup_epochs=1, **options)
    trainer = make_trainer(max_epochs=12)
    trainer.fit(task, loader(drop_last=True), loader())
    assert task.net.training  # networks come ready for evaluation
    assert task.last_scores["acc1"] == 1.0 and task.last_scores["loss"] < math.log(3)
    assert trainer.callback_metrics["val/acc1"].item() == 1.0
    assert task.last_samples["index"].tolist() == list(range(22)) and task.last_samples["correct"].all()
    assert task.epoch_losses("val")["loss"] == task.last_scores["loss"]


def test_steps_without_randomness_are_smoothed_cross_entropy():
    task, batch = ClassificationTask(small_vit(), lr=1.0, smoothing=0.3), a_batch()
    losses = []
    task.finite = lambda loss, batch, batch_idx: losses.append(loss) or loss
    task.training_step(batch, 0)
    logits = task.classify(batch["images"] / 255)
    targets = F.one_hot(batch["labels"], 3) * 0.7 + 0.1
    assert losses[0].item() == pytest.approx(-(targets * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5)


def test_erased_pixels_are_replaced_by_noise_and_no_others():
    task = ClassificationTask(small_vit(), lr=1.0)
    task.finite = lambda loss, batch, batch_idx: loss
    seen = []
    task.net.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    batch = collate_classification([Colours(erased=True)[index] for index in range(4)])
    task.training_step(batch, 0)
    (normalised,) = task.prepare(batch)
    assert torch.equal(seen[0][..., 1:], normalised[..., 1:])
    noise = seen[0][..., 0]
    assert (noise != normalised[..., 0]).all() and noise.std().item() == pytest.approx(1, abs=0.2)


def test_a_batch_that_does_not_make_pairs_is_refused_before_training():
    task = ClassificationTask(small_vit(), lr=1e-3, warmup_epochs=0, mixup=0.8)
    with pytest.raises(ValueError, match="a batch of 5 images cannot be mixed in pairs"):
        make_trainer().fit(task, loader(batch_size=5, drop_last=True))
    with pytest.raises(ValueError, match="a batch of 3 images cannot be mixed in pairs"):
        make_trainer().fit(task, loader(23))


def test_the_first_loss_after_finetuning_is_that_of_guessing(tmp_path):
    torch.save({"model": small_vit(global_pool="token", num_classes=7).net.state_dict()}, tmp_path / "mae.pth")
    task = ClassificationTask(small_vit(), checkpoint=str(tmp_path / "mae.pth"))
    batch = a_batch()
    loss = F.cross_entropy(task.classify(batch["images"] / 255), batch["labels"])
    assert loss.item() == pytest.approx(math.log(3), abs=1e-3)
    with pytest.raises(ValueError, match="load='finetune' made a new head, which nothing has trained yet"):
        make_trainer().validate(task, loader(), verbose=False)


def test_finetune_continue_and_resume_are_three_things(tmp_path):
    first = ClassificationTask(small_vit(), lr=1e-2, warmup_epochs=0)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(first, loader(), loader())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    file = str(tmp_path / "run.ckpt")
    images = a_batch()["images"] / 255
    expected = first.eval().classify(images)

    kept = ClassificationTask(small_vit(), checkpoint=file, load="continue").eval()
    assert torch.equal(kept.classify(images), expected)
    anew = ClassificationTask(small_vit(), checkpoint=file, load="finetune").eval()
    assert torch.equal(anew.net(*anew.prepare(a_batch()))["features"], first.net(*first.prepare(a_batch()))["features"])
    assert anew.classify(images).abs().max() < 1e-3
    resumed = ClassificationTask(small_vit(), lr=1e-2, warmup_epochs=0)
    make_trainer(max_epochs=2).fit(resumed, loader(), ckpt_path=file)
    assert resumed.trainer.current_epoch == 2 and resumed.trainer.global_step == 12

    with pytest.raises(ValueError, match="load='resume' is unknown: 'finetune' makes a new head, 'continue' keeps"):
        ClassificationTask(small_vit(), checkpoint=file, load="resume")
    with pytest.raises(ValueError, match=r"head.weight \(3, 12\) instead of \(5, 12\).*num_classes=3"):
        ClassificationTask(small_vit(num_classes=5), checkpoint=file, load="continue")


def test_data_of_other_classes_is_refused():
    class Data(pl.LightningDataModule):
        class_names = NAMES

        def val_dataloader(self):
            return loader()

    task = ClassificationTask(small_vit(num_classes=5))
    with pytest.raises(ValueError, match="the data has 3 classes, but the network 5: build it with num_classes=3"):
        make_trainer().validate(task, Data(), verbose=False)
    task = ClassificationTask(small_vit())
    make_trainer().validate(task, Data(), verbose=False)
    assert task.class_names == NAMES


class NamedData(pl.LightningDataModule):
    def __init__(self, names):
        super().__init__()
        self.class_names = names

    def train_dataloader(self):
        return loader()

    val_dataloader = train_dataloader


def test_a_trained_head_is_not_used_for_classes_of_other_names(tmp_path):
    first = ClassificationTask(small_vit(), lr=1e-2, warmup_epochs=0)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(first, NamedData(NAMES))
    trainer.save_checkpoint(file := str(tmp_path / "run.ckpt"))
    others = NamedData(["red", "amber", "blue"])
    words = (
        r"label 1 was 'green' in training, but is 'amber' here: use the classes of the training \(red, green, blue\)"
    )
    kept = {"checkpoint": file, "load": "continue", "lr": 1e-2, "warmup_epochs": 0}
    with pytest.raises(ValueError, match=words):
        make_trainer().validate(ClassificationTask(small_vit()), others, ckpt_path=file, verbose=False)
    with pytest.raises(ValueError, match=words):
        make_trainer().validate(ClassificationTask(small_vit(), **kept), others, verbose=False)
    with pytest.raises(ValueError, match=words):
        make_trainer().fit(ClassificationTask(small_vit(), **kept), others)
    make_trainer().validate(ClassificationTask(small_vit(), **kept), NamedData(NAMES), verbose=False)
    make_trainer().validate(ClassificationTask(small_vit(), NAMES, **kept), others, verbose=False)  # names alone differ
    nameless = ClassificationTask(small_vit(), **kept)
    make_trainer().validate(nameless, loader(), verbose=False)
    assert nameless.class_names == NAMES
    anew = ClassificationTask(small_vit(), **kept | {"load": "finetune"})
    make_trainer(max_epochs=1).fit(anew, others)
    assert anew.class_names == others.class_names


def test_predictions():
    task = ClassificationTask(small_vit())
    found = make_trainer().predict(task, loader(6))
    assert torch.cat([part["index"] for part in found]).tolist() == list(range(6))
    batch = a_batch()
    outputs = task.net(*task.prepare(batch))
    assert torch.equal(found[0]["logits"], outputs["logits"]) and torch.equal(found[0]["features"], outputs["features"])
    with torch.no_grad():
        assert torch.allclose(task.net.net.head(found[0]["features"]), found[0]["logits"], atol=1e-6)


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_every_choice_is_explained(pool):
    task, batch = ClassificationTask(small_vit(global_pool=pool), NAMES), a_batch()
    outputs = task.net(*task.prepare(batch))
    best = outputs["logits"].argmax(1)
    expected = {"predicted": best, "truth": batch["labels"], "class:blue": torch.full((4,), 2), "class:0": 0 * best}
    for choice, classes in expected.items():
        explained = task.explained(outputs, batch, choice, limit=3)
        assert torch.equal(explained.classes, classes) and explained.boxes is None and explained.objects is None
        assert torch.equal(explained.targets.scores, outputs["logits"][torch.arange(4), classes])
        share = outputs["logits"].softmax(1)[0, classes[0]].item()
        assert explained.names[0] == f"class {NAMES[classes[0]]} {share:.2f}"
        found = explain(
            task.net, task.prepare(batch), lambda o, c=choice: task.explained(o, batch, c).targets, GenericRelevance()
        )
        assert found.grid().shape == (4, 2, 2) and found.grid().isfinite().all()
    for choice, words in {
        "kept": "there is no target 'kept'; this task explains predicted, truth, class:NAME or class:INDEX",
        "class:3": "there is no class '3'; they go from 0 to 2: red, green, blue",
    }.items():
        with pytest.raises(ValueError, match=words):
            task.explained(outputs, batch, choice)
    with pytest.raises(LookupError):
        task.explained(outputs, batch, limit=0)
    batch["labels"] = torch.tensor([-1, 2, -1, 0])
    explained = task.explained(outputs, batch, "truth")
    assert explained.targets.samples.tolist() == [1, 3] and explained.classes.tolist() == [2, 0]
    with pytest.raises(LookupError, match="no image of this batch has a known class"):
        task.explained(outputs, {"labels": torch.tensor([-1] * 4)}, "truth")


def test_what_it_says_about_an_image():
    task, batch = ClassificationTask(small_vit(), NAMES), a_batch()
    outputs = {"logits": torch.tensor([[0.0, 2.0, 1.0]] * 4)}
    assert task.prediction(outputs, batch, 2).lines == ("green 0.67", "blue 0.24", "red 0.09", "true: blue")
    del batch["labels"]
    task.class_names = None
    assert task.prediction(outputs, batch, 2).lines == ("1 0.67", "2 0.24", "0 0.09")


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match=r"smoothing=1\.0 must be a share"):
        ClassificationTask(small_vit(), smoothing=1.0)
    with pytest.raises(ValueError, match="mixup_mode='half' is unknown"):
        ClassificationTask(small_vit(), mixup=0.8, mixup_mode="half")


def trained(rank: int, replicas: int, **settings) -> dict[str, torch.Tensor]:
    """The weights after two epochs of five batches of 4, two of them an update: the last one is thrown away."""
    task = ClassificationTask(small_vit(), lr=1e-2, warmup_epochs=1)
    order = strided_order(20, 0, rank, replicas, shuffle=False)
    batches = loader(batch_size=4 // replicas, sampler=order)
    make_trainer(max_epochs=2, accumulate_grad_batches=2, use_distributed_sampler=False, **settings).fit(task, batches)
    return task.net.state_dict()


def evaluated(rank: int, replicas: int, **settings) -> dict:
    sampler = EvaluationSampler(22, 4, rank, replicas)
    task = ClassificationTask(small_vit())
    trainer = make_trainer(use_distributed_sampler=False, **settings)
    trainer.validate(task, loader(sampler=sampler), verbose=False)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    return {"scores": task.last_scores, "samples": task.last_samples, "metrics": metrics}


def test_two_processes_give_the_numbers_of_one(in_two_processes, tmp_path):
    """22 samples in batches of 4: no share is padded, and the numbers are equal to the last digit. So is training."""
    in_two_processes(__file__, tmp_path)
    alone, weights = evaluated(0, 1), trained(0, 1)
    assert 0 < alone["scores"]["acc1"] < 1 and len(alone["samples"]["index"]) == 22
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["scores"] == alone["scores"] and found["metrics"] == alone["metrics"]
        for name, values in alone["samples"].items():
            assert torch.equal(found["samples"][name], values)
        for name, values in weights.items():
            if "qkv.bias" not in name:  # keys' biases have no gradient but rounding noise, which Adam enlarges
                torch.testing.assert_close(found["weights"][name], values, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    process = int(os.environ["RANK"])
    both = {"strategy": "ddp", "devices": 2}
    result = {**evaluated(process, 2, **both), "weights": trained(process, 2, **both)}
    torch.save(result, Path(sys.argv[1]) / f"{process}.pt")
