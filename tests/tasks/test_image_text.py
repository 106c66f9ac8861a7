"""Training images and texts by contrast, retrieval, and what of it is explained."""

import os
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from lightning_xai.explain.explain_batch import explain_batch, methods_by_name
from lightning_xai.nets.clip import CLIP, new_clip
from lightning_xai.nets.clip_inputs import MEAN, STD
from lightning_xai.tasks.image_text import ImageTextTask, contrastive_loss

pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = ["a", "red", "green", "blue", "picture"]


def make_net(seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    sizes = {"width": 16, "layers": 1, "heads": 2, "text_width": 16, "text_layers": 1, "text_heads": 2, "context": 6}
    return new_clip(WORDS, image_size=16, patch_size=8, embed_dim=8, **sizes)


def make_batch(colours=(0, 1, 2, 1), first=0) -> dict:
    """Pictures of one colour with their text."""
    images = torch.full((len(colours), 3, 16, 16), 30, dtype=torch.uint8)
    for image, colour in zip(images, colours, strict=True):
        image[colour] = 220
    texts = tuple(f"a {WORDS[1 + colour]} picture" for colour in colours)
    return {"images": images, "texts": texts, "index": torch.arange(first, first + len(colours))}


def make_trainer(**options) -> pl.Trainer:
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(**{"accelerator": "cpu", "max_epochs": 1, **dict.fromkeys(quiet, False), **options})


def loader(batches) -> DataLoader:
    return DataLoader(batches, batch_size=None)


def test_loss_by_the_formula_and_by_processes():
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 4, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    scale = torch.tensor(3.0, dtype=torch.float64)
    shares = (scale * image @ text.T).softmax(1).diagonal(), (scale * text @ image.T).softmax(1).diagonal()
    expected = -(shares[0].log().mean() + shares[1].log().mean()) / 2
    whole = contrastive_loss(image, text, image, text, scale)
    torch.testing.assert_close(whole, expected)
    parts = [contrastive_loss(image[r : r + 3], text[r : r + 3], image, text, scale, r // 3) for r in (0, 3)]
    torch.testing.assert_close(sum(parts) / 2, expected)


def test_inputs_are_normalised_as_the_network_was_trained():
    task = ImageTextTask(make_net())
    images, tokens = task.prepare(make_batch((0,)))
    torch.testing.assert_close(
        images[0, :, 0, 0], (torch.tensor([220, 30, 30]) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    )
    assert tokens.tolist() == [[5, 0, 1, 4, 6, 0]]
    with pytest.raises(ValueError, match="images of 8 x 16 pixels, but this network has 16 x 16: set image_size=16"):
        task.prepare({**make_batch(), "images": torch.zeros(4, 3, 8, 16, dtype=torch.uint8)})
    with pytest.raises(ValueError, match="has the word 'grey'"):
        task.prepare({**make_batch(), "texts": ("a grey picture",) * 4})


def test_it_learns_what_texts_say_and_the_scale_is_held():
    task = ImageTextTask(make_net(), lr=1e-2, warmup_epochs=0)
    trainer = make_trainer()
    trainer.validate(task, loader([make_batch((0, 1, 2))]), verbose=False)
    before = task.last_scores
    trainer.fit(task, loader([make_batch((0, 1, 2))] * 150))
    assert task.epoch_losses("train")["loss"] < 0.8  # of the epoch's mean, from ln 3
    (metrics,) = trainer.validate(task, loader([make_batch((0, 1)), make_batch((2, 0), first=2)]), verbose=False)
    assert set(before) == {"image_to_text_r1", "image_to_text_r5", "text_to_image_r1", "text_to_image_r5"}
    # two pictures are red: each is found by the text of both, and is no rival of the other
    assert task.last_scores["image_to_text_r1"] == 1.0 and metrics["val/text_to_image_r1"] == 1.0

    with torch.no_grad():
        task.net.net.logit_scale.fill_(4.7)  # above ln 100
    make_trainer().fit(task, loader([make_batch((0, 1, 2))]))
    assert 99 < float(task.net.scale().detach()) <= 100.001


def test_weights_to_start_from(tmp_path):
    task = ImageTextTask(make_net(1))
    torch.save({"state_dict": task.state_dict()}, tmp_path / "ours.ckpt")
    again = ImageTextTask(make_net(2), checkpoint=str(tmp_path / "ours.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(task.parameters(), again.parameters(), strict=True))


def test_each_pair_is_explained():
    task = ImageTextTask(make_net()).eval()
    batch = make_batch((0, 1, 2))
    found = explain_batch(task, batch, methods_by_name(["generic_relevance", "rollout"]))
    outputs = task.net(*task.prepare(batch))
    cosines = F.cosine_similarity(outputs["image_features"], outputs["text_features"])
    assert found.explained.names == tuple(
        f"{t!r}: cosine {c:.2f}" for t, c in zip(batch["texts"], cosines, strict=True)
    )
    torch.testing.assert_close(found.explained.targets.scores, outputs["logits_per_image"].diagonal())
    assert found.explained.classes.tolist() == [-1, -1, -1]
    relevance = found.by_method["generic_relevance"].relevance
    assert relevance["image"].shape == (3, 5) and relevance["text"].shape == (3, 6)

    lines = task.prediction(outputs, batch, 1).lines
    shares = outputs["logits_per_image"][1].softmax(0)
    assert lines[0] == f"{batch['texts'][int(shares.argmax())]} {shares.max():.2f}" and len(lines) == 3
    alone = {**{key: value[:1] for key, value in batch.items()}}
    assert task.prediction(task.net(*task.prepare(alone)), alone, 0).lines == (f"cosine {cosines[0]:.2f}",)
    for choice in ("class:1", "kept"):
        with pytest.raises(ValueError, match="this task explains predicted, truth"):
            task.explained(outputs, batch, choice)


def test_two_processes_train_and_measure_as_one(in_two_processes, tmp_path):
    in_two_processes(__file__, tmp_path)
    task = ImageTextTask(make_net(), lr=0.01, warmup_epochs=0)
    make_trainer().fit(task, loader([make_batch()]), loader([make_batch()]))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    start = make_net().state_dict()
    for name, value in task.net.state_dict().items():
        if not name.endswith("k_proj.bias"):  # whose gradient is rounding, to which Adam gives the size of a step
            torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(first["weights"][name], second["weights"][name])
    assert not torch.equal(start["net.logit_scale"], first["weights"]["net.logit_scale"])
    assert first["scores"] == second["scores"] == task.last_scores


def process(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    part = {key: value[2 * rank : 2 * rank + 2] for key, value in make_batch().items()}
    trainer = make_trainer(strategy="ddp", devices=2, use_distributed_sampler=False)
    task = ImageTextTask(make_net(), lr=0.01, warmup_epochs=0)
    trainer.fit(task, loader([part]), loader([part]))
    torch.save({"weights": task.net.state_dict(), "scores": task.last_scores}, folder / f"{rank}.pt")


if __name__ == "__main__":
    process(Path(sys.argv[1]))
