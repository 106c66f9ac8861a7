"""Training and evaluating captioners, on the embedded world's graphs."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_xai.callbacks.caption_views import CaptionViews
from lightning_xai.callbacks.step_seed import StepSeed
from lightning_xai.callbacks.write_captions import WriteCaptions
from lightning_xai.data.drawn_features import FEATURE_SIZE
from lightning_xai.data.embedded_scene_graphs import EmbeddedSceneGraphsModule
from lightning_xai.evaluate.caption_diversity import diversity_scores
from lightning_xai.evaluate.caption_metrics import caption_scores
from lightning_xai.evaluate.cider import NgramRarity
from lightning_xai.evaluate.graph_structure import CaptionGraph
from lightning_xai.evaluate.java_metrics import JavaMetricMissing
from lightning_xai.nets.asg_captioner import ASGCaptioner
from lightning_xai.nets.beam_search import ENDED, Beams
from lightning_xai.tasks.captioning import CaptioningTask, Sentence
from lightning_xai.tasks.scheduled_sampling import ScheduledSampling


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
    assert set(task.last_scores) == {"loss", *expected, "grounding"} and task.last_table is None


def test_it_learns_and_goes_on_from_its_weights(tmp_path):
    data, task = make_data(batch_size=2), CaptioningTask(make_net(), lr=1e-2)
    data._splits["train"] = data.val_set  # whose graphs are the same in each epoch, so that they can be learned
    trainer = make_trainer(tmp_path, max_epochs=60, check_val_every_n_epoch=60)
    trainer.fit(task, data)
    assert 0 < task.epoch_losses("train")["loss"] < 2.0 < math.log(30) - 1.4
    assert trainer.callback_metrics["val/loss"] == pytest.approx(task.last_scores["loss"])
    trainer.save_checkpoint(tmp_path / "ours.ckpt")
    again = CaptioningTask(make_net(1), checkpoint=str(tmp_path / "ours.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(task.parameters(), again.parameters(), strict=True))

    resumed = CaptioningTask(make_net(1))
    same = make_data(batch_size=2)
    make_trainer(tmp_path).validate(resumed, same, ckpt_path=tmp_path / "ours.ckpt", verbose=False)
    assert resumed.last_scores == task.last_scores
    other = make_data()
    other.vocabulary.__init__(other.vocabulary.words[:3] + other.vocabulary.words[:2:-1])
    for task, file in ((CaptioningTask(make_net()), tmp_path / "ours.ckpt"), (again, None)):
        with pytest.raises(ValueError, match=r"trained with other words \('a' was where the data have 'yellow'\)"):
            make_trainer(tmp_path).validate(task, other, ckpt_path=file)


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


def test_what_goes_on_after_its_end_is_no_sentence(monkeypatch):
    task = CaptioningTask(make_net(), beam_width=2, sentences=4, max_words=4)
    task.use_vocabulary(make_data().vocabulary)
    words = torch.tensor([[[5, 1, -1, -1], [6, 7, 8, 9], [5, 1, 6, 7], [-1] * 4]])
    scores = torch.tensor([[-0.5, -90.0, (ENDED - 3) / 4, -torch.inf]])
    beams = Beams(words, -torch.ones(1, 4, 4), scores, torch.tensor([3]))
    monkeypatch.setattr(task.net, "beam", lambda *_: beams)
    ((first, second),) = task.captions({})
    said = task.vocabulary.words
    assert first == (said[5], -0.5, (-1.0, -1.0)) and second.text == " ".join(said[6:10]) and second.score == -90


def test_grounding_by_attention_and_by_what_else_explains(tmp_path):
    class Honest(ASGCaptioner):
        """Attends to the node that the word speaks of, and says what it says because of that node alone."""

        def forward(self, graph, captions, details=False):
            spoken = next(known["word_nodes"] for known in batches if torch.equal(known["captions"], captions))[:, 1:]
            attention = torch.nn.functional.one_hot(spoken.clamp(min=0), graph["attn_masks"].shape[1]).float()
            right = torch.einsum("btn,bn->bt", attention, graph["attn_fts"].abs().mean(2))  # 0 without it
            logits = torch.zeros(*spoken.shape, self.vocabulary).scatter(2, captions[:, 1:, None], right[..., None])
            return {"logits": logits, "attention": attention}

    data = make_data(eval_batch_size=3)
    batches = [data.collate([data.dataset("test")[index] for index in rows]) for rows in ((0, 1, 2), (3, 4))]
    sizes = {"feature_dim": FEATURE_SIZE, "global_dim": FEATURE_SIZE, "hidden_dim": 16}
    task = CaptioningTask(Honest("node", 30, **sizes), max_words=4)
    make_trainer(tmp_path).test(task, data, verbose=False)
    table = task.last_table
    assert list(table) == ["attention", "gradient_x_input", "occlusion", "random", "chance"]
    words = sum(int((batch["word_nodes"] >= 0).sum()) for batch in batches)
    for method in ("attention", "gradient_x_input", "occlusion"):
        assert table[method]["words"] == words and table[method]["node"] == table[method]["object"] == 1
    chance = [
        1 / len(nodes)
        for batch in batches
        for nodes, spoken in zip(batch["nodes"], batch["word_nodes"], strict=True)
        for _ in range(int((spoken >= 0).sum()))
    ]
    assert table["chance"]["node"] == pytest.approx(sum(chance) / len(chance))
    assert table["random"]["node"] < 0.7
    assert task.last_scores["grounding"] == 1
    assert all(parameter.grad is None for parameter in task.parameters())


def test_without_known_words_there_is_no_grounding(tmp_path):
    class Unknown(EmbeddedSceneGraphsModule):
        def collate(self, samples):
            return super().collate([{**sample, "word_nodes": None} for sample in samples])

    task = CaptioningTask(make_net(), max_words=4)
    make_trainer(tmp_path).test(task, Unknown(n_test=3, n_train=1, n_val=1), verbose=False)
    assert "grounding" not in task.last_scores and task.last_table is None


def test_diversity_of_sentences_and_of_an_images_graphs(tmp_path):
    class OfOneImage(EmbeddedSceneGraphsModule):
        def collate(self, samples):
            batch = super().collate(samples)
            return {**batch, "image_ids": tuple(str(index // 2) for index in batch["index"].tolist())}

    class Canned(CaptioningTask):
        def captions(self, graph, greedy=False):
            self.said += len(graph["attn_masks"])
            numbers = range(self.said - len(graph["attn_masks"]), self.said)
            found = [[f"a {number}", "a star"] if number < 4 else ["a heart"] for number in numbers]
            return [[Sentence(text, 0.0, ()) for text in texts] for texts in found]

    task = Canned(make_net(), beam_width=2, sentences=2, metrics=("bleu", "graph_structure"))
    task.said = 0
    data = OfOneImage(n_train=1, n_val=1, n_test=5, eval_batch_size=2)
    make_trainer(tmp_path).test(task, data, verbose=False)
    assert task.last_scores["num_words"] == 6 and task.last_scores["avg_len"] == 2  # "a", four numbers, "heart"
    assert task.last_scores["Div-1/sentences"] == 3 / 4  # "a" twice; the last graph has but one sentence
    assert task.last_scores["Div-1/graphs"] == 3 / 4 and task.last_scores["Div-2/graphs"] == 2 / 4
    rarity = NgramRarity(data.references("test").values())
    expected = [diversity_scores([[f"a {n}", "a star"]], rarity)["Self-CIDEr"] for n in range(4)]
    assert task.last_scores["Self-CIDEr/sentences"] == pytest.approx(sum(expected) / 4)
    counts = [data.dataset("test").graph(index).counts() for index in range(5)]
    objects = sum(abs(count[0] - spoken) for count, spoken in zip(counts, (0, 0, 0, 0, 1), strict=True)) / 5
    assert task.last_scores["G_o"] == pytest.approx(objects)  # read by the world's own words: "0" is none
    task.said = 0
    make_trainer(tmp_path).validate(task, data, verbose=False)
    assert not [name for name in task.last_scores if "Div" in name]
    task = CaptioningTask(make_net(), metrics=("graph_structure",), parser=lambda caption: CaptionGraph((), (), ()))
    make_trainer(tmp_path).validate(task, data, verbose=False)
    assert task.last_scores["G"] == 0


def test_training_on_own_words(tmp_path):
    def trained(sampling, epochs):
        task = CaptioningTask(make_net(), lr=1e-2, sampling=sampling)
        make_trainer(tmp_path, callbacks=StepSeed(3), limit_val_batches=0, max_epochs=epochs).fit(task, make_data())
        return torch.cat([parameter.detach().flatten() for parameter in task.parameters()])

    from_second_epoch = ScheduledSampling(0.0, 1.0, 1.0, every=1)
    plain = trained(None, 1)
    assert torch.equal(plain, trained(from_second_epoch, 1)) and not torch.equal(
        plain, trained(ScheduledSampling(1, 1), 1)
    )
    assert not torch.equal(trained(None, 2), trained(from_second_epoch, 2))


def test_a_run_that_ended_in_mid_epoch_goes_on_alike(tmp_path):
    sampling = ScheduledSampling(0.5, 0.9, 0.4, every=1)
    steps = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    weights = []
    for resumed, workers in ((None, 0), (tmp_path / "step=3.ckpt", 1)):
        task = CaptioningTask(make_net(7 * workers), lr=1e-2, sampling=sampling)
        callbacks = [StepSeed(3)] if resumed else [StepSeed(3), steps]
        options = {"max_epochs": 4, "limit_val_batches": 0, "enable_checkpointing": not resumed}
        trainer = make_trainer(tmp_path, callbacks=callbacks, **options)
        trainer.fit(task, make_data(num_workers=workers), ckpt_path=resumed)
        assert trainer.global_step == 8
        weights.append(torch.cat([parameter.detach().flatten() for parameter in task.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(tmp_path, precision):
    task = CaptioningTask(make_net(), max_words=5, beam_width=2, sampling=ScheduledSampling(0.5, 0.5))
    trainer = make_trainer(tmp_path, precision=precision, callbacks=CaptionViews(samples=1))
    trainer.fit(task, make_data())
    trainer.test(task, make_data(), verbose=False)
    assert list(task.last_table) == ["attention", "gradient_x_input", "occlusion", "random", "chance"]
    assert 2 < task.last_scores["loss"] < 4 and len(list(tmp_path.rglob("*.png"))) == 1


def test_what_validation_lacks_is_told_before_training(tmp_path):
    def never(*_):
        raise AssertionError("training began")

    task = CaptioningTask(make_net(), metrics=("bleu", "meteor"), jars={"meteor": "none.jar"})
    task.training_step = never
    with pytest.raises(JavaMetricMissing, match=r"none\.jar does not exist"):
        make_trainer(tmp_path).fit(task, make_data())
    data = make_data()
    data.references = lambda split: {}[split]
    task = CaptioningTask(make_net())
    task.training_step = never
    with pytest.raises(KeyError, match="val"):
        make_trainer(tmp_path).fit(task, data)
    make_trainer(tmp_path).predict(CaptioningTask(make_net(), metrics=("meteor",), jars={"meteor": "none.jar"}), data)


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
    with pytest.raises(ValueError, match="no method 'lime' explains words; there are: gradient_x_input, occlusion"):
        CaptioningTask(make_net(), word_methods=["lime"])
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


def test_two_processes_train_and_measure_as_one(in_two_processes, tmp_path):
    in_two_processes(__file__, tmp_path)
    alone = run(make_trainer(tmp_path, callbacks=WriteCaptions(1)), batch_size=8)
    captions = (tmp_path / "captions.json").read_text()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["scores"] == second["scores"] and first["loss"] == second["loss"]
    assert first["scores"] == pytest.approx(alone["scores"], rel=1e-4)
    assert first["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert first["test"] == second["test"] == pytest.approx(alone["test"], rel=1e-4)
    assert "Self-CIDEr/sentences" in first["test"] and first["table"] == second["table"]
    for method, numbers in alone["table"].items():
        assert first["table"][method] == pytest.approx(numbers), method
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
    found = {"scores": task.last_scores, "loss": task.epoch_losses("train")["loss"]}
    task.beam_width = task.sentences = 2
    trainer.test(task, data, verbose=False)
    return {"weights": task.net.state_dict(), **found, "test": task.last_scores, "table": task.last_table}


class SlowTask(CaptioningTask):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.5)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False, "callbacks": WriteCaptions(1)}
    found = run(make_trainer(folder / "two", **options), batch_size=4)
    torch.save(found, folder / f"{os.environ['RANK']}.pt")
