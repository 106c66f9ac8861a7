"""Training and evaluating captioners, on the embedded world's graphs."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from lightning_xai.callbacks.write_captions import WriteCaptions
from lightning_xai.data.drawn_features import FEATURE_SIZE
from lightning_xai.data.embedded_scene_graphs import EmbeddedSceneGraphsModule
from lightning_xai.evaluate.caption_metrics import caption_scores
from lightning_xai.nets.asg_captioner import ASGCaptioner
from lightning_xai.tasks.captioning import CaptioningTask, Sentence


def make_net(seed: int = 0, vocabulary: int = 30) -> ASGCaptioner:
    torch.manual_seed(seed)
    sizes = {"feature_dim": FEATURE_SIZE, "global_dim": FEATURE_SIZE, "hidden_dim": 16}
    return ASGCaptioner("rgcn.flow.memory", vocabulary, dropout=0.0, **sizes)


def make_data(**arguments) -> EmbeddedSceneGraphsModule:
    return EmbeddedSceneGraphsModule(**{"n_train": 8, "n_val": 6, "n_test": 5, "batch_size": 4, **arguments})


def make_trainer(folder, **options) -> pl.Trainer:
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    defaults = {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0, "default_root_dir": folder}
    return pl.Trainer(**{**defaults, **dict.fromkeys(quiet, False), **options})


def test_loss_and_scores_are_of_the_whole_split(tmp_path):
    data, task = make_data(batch_size=4), CaptioningTask(make_net(), max_words=9)
    make_trainer(tmp_path).validate(task, data, verbose=False)
    batch = data.collate([data.val_set[index] for index in range(6)])  # in one batch instead of two
    task.net.eval()
    with torch.no_grad():
        logits = task.net(batch["graph"], batch["captions"])["logits"].log_softmax(-1)
    said = logits.gather(2, batch["captions"][:, 1:, None])[..., 0][batch["caption_masks"][:, 1:]]
    assert task.last_scores["loss"] == pytest.approx(-float(said.mean()), rel=1e-5)
    words = task.net.greedy(batch["graph"], 9)["words"]
    captions = {name: data.vocabulary.decode(row) for name, row in zip(batch["names"], words.tolist(), strict=True)}
    expected = caption_scores(captions, data.references("val")).corpus
    assert {name: task.last_scores[name] for name in expected} == expected
    assert set(task.last_scores) == {"loss", *expected}


def test_it_learns_and_goes_on_from_its_weights(tmp_path):
    data, task = make_data(), CaptioningTask(make_net(), lr=1e-2)
    trainer = make_trainer(tmp_path, max_epochs=25, check_val_every_n_epoch=25)
    trainer.fit(task, data)
    assert 0 < task.epoch_losses("train")["loss"] < 2.6 < math.log(30) - 0.7
    assert trainer.callback_metrics["val/loss"] == pytest.approx(task.last_scores["loss"])
    trainer.save_checkpoint(tmp_path / "ours.ckpt")
    again = CaptioningTask(make_net(1), checkpoint=str(tmp_path / "ours.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(task.parameters(), again.parameters(), strict=True))

    resumed = CaptioningTask(make_net(1))
    make_trainer(tmp_path).validate(resumed, make_data(), ckpt_path=tmp_path / "ours.ckpt", verbose=False)
    assert resumed.last_scores == task.last_scores
    other = make_data()
    other.vocabulary.__init__(other.vocabulary.words[:3] + other.vocabulary.words[:2:-1])
    with pytest.raises(ValueError, match=r"trained with other words \('a' was where the data have 'yellow'\)"):
        make_trainer(tmp_path).validate(CaptioningTask(make_net()), other, ckpt_path=tmp_path / "ours.ckpt")


def test_a_captioner_that_obeys_its_graph_and_one_that_does_not(tmp_path):
    class Obedient(CaptioningTask):
        def captions(self, graph, greedy=False):
            """Names the first two objects in the order in which their features lie in the graph."""
            val_set, said = self.trainer.datamodule.val_set, []
            for index, features in enumerate(graph["attn_fts"]):
                nodes, before = val_set[index]["nodes"], val_set[index]["graph"]["attn_fts"]
                names = [name for name, kind in zip(nodes.names, nodes.types, strict=True) if kind == 0][:2]
                untouched = torch.equal(before, features[: len(nodes)])
                said.append([Sentence(" ".join(names if untouched else names[::-1]), 0.0, ())])
            return said

    task = Obedient(make_net(), swap_objects=True)
    data = make_data(eval_batch_size=6)
    make_trainer(tmp_path).validate(task, data, verbose=False)
    assert task.last_scores["swap"] == 1.0
    task = CaptioningTask(make_net(), swap_objects=True)
    make_trainer(tmp_path).validate(task, data, verbose=False)
    assert task.last_scores["swap"] == 0.0  # an untrained one says nothing true


def test_beams_and_predictions(tmp_path):
    data = make_data()
    task = CaptioningTask(make_net(), beam_width=3, sentences=2, max_words=6)
    trainer = make_trainer(tmp_path, callbacks=WriteCaptions(3))
    predictions = trainer.predict(task, data)
    written = json.loads((tmp_path / "captions.json").read_text())
    batch = data.collate([data.dataset("test")[index] for index in range(5)])
    beams = task.net.beam(batch["graph"], 3, 2, 6)
    assert list(written) == list(batch["names"])
    assert [index for part in predictions for index in part["index"]] == list(range(5))
    for sample, (name, sentences) in enumerate(written.items()):
        assert 1 <= len(sentences) <= 2, name
        for place, (text, score, words) in enumerate(sentences):
            numbers = beams.words[sample, place]
            assert text == data.vocabulary.decode(numbers[numbers >= 0].tolist())
            assert score == pytest.approx(float(beams.scores[sample, place]), rel=1e-4)
            assert len(words) >= len(text.split())
    greedy = CaptioningTask(make_net(), max_words=6)
    ((sentence,), *_) = greedy_captions(greedy, data, batch)
    assert sentence.score == pytest.approx(sum(sentence.word_scores)) and len(sentence.word_scores) <= 6


def greedy_captions(task, data, batch):
    task.vocabulary = data.vocabulary
    return task.eval().captions(batch["graph"])


def test_bad_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="sentences=2 of a graph need a beam_width above 1"):
        CaptioningTask(make_net(), sentences=2)
    with pytest.raises(ValueError, match="beam_width=0 must be at least 1"):
        CaptioningTask(make_net(), beam_width=0)
    with pytest.raises(ValueError, match="no caption metric 'blue'; there are: bleu"):
        CaptioningTask(make_net(), metrics=("blue",))
    with pytest.raises(ValueError, match="has vocabulary=31 words, but the data have 30: build it with vocabulary=30"):
        make_trainer(tmp_path).validate(CaptioningTask(make_net(vocabulary=31)), make_data())
    with pytest.raises(TypeError, match="such as SceneGraphModule, but the trainer has NoneType"):
        make_trainer(tmp_path).validate(CaptioningTask(make_net()), make_data().val_dataloader())


def test_a_loss_that_is_not_finite_names_the_samples(tmp_path):
    task = CaptioningTask(make_net())
    with torch.no_grad():
        task.net.decoder.embedding["we"].weight[5] = math.nan
    with pytest.raises(FloatingPointError, match=r"image ids .*the loss of the words"):
        make_trainer(tmp_path).fit(task, make_data())


def test_two_processes_train_and_measure_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    alone = run(make_trainer(tmp_path, callbacks=WriteCaptions(1)), batch_size=8)
    captions = (tmp_path / "captions.json").read_text()
    try:
        assert [worker.wait(300) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["scores"] == second["scores"] and first["loss"] == second["loss"]
    assert first["scores"] == pytest.approx(alone["scores"], rel=1e-4)
    assert first["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    for name, value in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-5)
    together = json.loads((tmp_path / "two" / "captions.json").read_text())
    assert {name: entry[0] for name, entry in together.items()} == {
        name: entry[0] for name, entry in json.loads(captions).items()
    }


def run(trainer: pl.Trainer, batch_size: int) -> dict:
    # a step of plain descent: to a gradient that is rounding Adam would give the size of a step
    task, data = (
        SlowTask(make_net(), swap_objects=True, max_words=9),
        make_data(batch_size=batch_size, eval_batch_size=2),
    )
    trainer.fit(task, data)
    trainer.predict(task, data)
    return {"weights": task.net.state_dict(), "scores": task.last_scores, "loss": task.epoch_losses("train")["loss"]}


class SlowTask(CaptioningTask):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.5)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False, "callbacks": WriteCaptions(1)}
    found = run(make_trainer(folder / "two", **options), batch_size=4)
    torch.save(found, folder / f"{os.environ['RANK']}.pt")
