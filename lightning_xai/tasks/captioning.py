"""Training, evaluating and using a captioner of abstract scene graphs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_xai.evaluate.caption_diversity import diversity_by_source
from lightning_xai.evaluate.caption_metrics import (
    WITHOUT_JAVA,
    caption_scores,
    mean_length,
    require_metrics,
    vocabulary_size,
)
from lightning_xai.evaluate.collected_captions import CollectedCaptions, WrittenCaptions
from lightning_xai.evaluate.graph_structure import CaptionParser
from lightning_xai.evaluate.graph_swaps import names_exchanged, object_pair, with_objects_exchanged
from lightning_xai.evaluate.known_words import KnownWords
from lightning_xai.evaluate.word_grounding import WordGrounding, random_relevance
from lightning_xai.evaluate.word_relevance import METHODS as WORD_METHODS
from lightning_xai.evaluate.word_relevance import word_relevance
from lightning_xai.nets.asg_captioner import EOS, ASGCaptioner
from lightning_xai.nets.asg_captioner_checkpoints import load_captioner_checkpoint
from lightning_xai.nets.beam_search import ENDED
from lightning_xai.tasks.caption_loss import caption_loss
from lightning_xai.tasks.not_finite import stop_unless_finite
from lightning_xai.tasks.scheduled_sampling import ScheduledSampling, sampled_logits


class Sentence(NamedTuple):
    """A caption, its score (see `CaptioningTask.captions`) and the log-probability of each word, its end included."""

    text: str
    score: float
    word_scores: tuple[float, ...]


class CaptioningTask(pl.LightningModule):
    """Train a captioner on graphs with captions, and measure what it says of other graphs.

    A batch has graph (what the network reads), captions (B, T) and caption_masks (B, T), index (B,), and tuples of B:
    names, image_ids, nodes; it may have word_nodes (B, T), the node that each word of the caption speaks of or -1. The
    trainer's data module has `vocabulary` (with `words` and `decode`) and `references(split)`; it may have
    `word_kinds`, the arguments of `KnownWords`. Adam without decay, at a constant rate, as published.

    Args:
        beam_width: Of test and prediction; 1 is greedy, as is every validation. sentences: How many a graph gets.
        reorder_all: See `ASGCaptioner.beam`; False is what the published code did.
        max_words: The longest caption, its end included.
        metrics, jars: See `caption_scores`. parser: How "graph_structure" reads captions; by default `KnownWords` where
            the data say what their words are, else `RuleParser`.
        swap_objects: Also measure `swap`, the share of graphs with two objects of different names whose names change
            places in the caption when the objects do; it needs each graph to be captioned twice.
        sampling: Train on some of the network's own words.
        word_methods: What explains words in a test besides attention, of `word_relevance`; it takes some thirty times
            as long as writing the captions: leave it empty where that is too long.
        checkpoint: A published file or one of this project whose weights training or evaluation starts from.

    After validation or test `last_scores` has loss (per word, of the whole split), the metrics, `swap`, and where the
    batches have word_nodes `grounding`: the share of the reference's words that attend most to the node they speak of.
    A test adds num_words (different ones in all captions), avg_len (words of a caption), and the diversity of captions
    (see `diversity_by_source`): of a graph's `sentences`, and of an image's graphs where it has several. With
    word_nodes it also leaves `last_table`, which has the numbers of `WordGrounding` for attention, `word_methods` and
    two that know nothing. A checkpoint remembers the words; ValueError where the data have others.
    """

    def __init__(
        self,
        net: ASGCaptioner,
        lr: float = 2e-4,
        beam_width: int = 1,
        sentences: int = 1,
        reorder_all: bool = True,
        max_words: int = 25,
        metrics: Sequence[str] = WITHOUT_JAVA,
        jars: Mapping[str, str] | None = None,
        swap_objects: bool = False,
        checkpoint: str | None = None,
        parser: CaptionParser | None = None,
        sampling: ScheduledSampling | None = None,
        word_methods: Sequence[str] = tuple(WORD_METHODS),
    ):
        super().__init__()
        for name, value in {"beam_width": beam_width, "sentences": sentences, "max_words": max_words}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if sentences > 1 and beam_width == 1:
            raise ValueError(f"sentences={sentences} of a graph need a beam_width above 1: greedy decoding finds one")
        require_metrics(metrics, jars, programs=False)
        unknown = [method for method in word_methods if method not in WORD_METHODS]
        if unknown:
            raise ValueError(f"no method {unknown[0]!r} explains words; there are: {', '.join(WORD_METHODS)}")
        self.net, self.lr = net, lr
        self.beam_width, self.sentences, self.reorder_all = beam_width, sentences, reorder_all
        self.max_words, self.metrics, self.jars, self.swap_objects = max_words, tuple(metrics), jars, swap_objects
        self.parser, self.sampling, self.word_methods = parser, sampling, tuple(word_methods)
        self.vocabulary: Any = None
        self._words_of_weights: list[str] | None = None
        self.last_scores: dict[str, float] | None = None
        self.last_table: dict[str, dict[str, float]] | None = None
        self._references: dict[str, dict[str, list[str]]] = {}
        self._loss_sum, self._loss_steps = 0.0, 0
        self._start_evaluation()
        if checkpoint is not None:
            self._words_of_weights = load_captioner_checkpoint(net, checkpoint)

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        if not callable(getattr(data, "references", None)):
            raise TypeError(
                f"captions are trained with a data module that has a vocabulary and references, such as "
                f"SceneGraphModule, but the trainer has {type(data).__name__}"
            )
        self.use_vocabulary(data.vocabulary)
        self._references = {}
        if stage != "predict":  # what an evaluation lacks is told before an epoch's work
            require_metrics(self.metrics, self.jars)
            if stage == "fit" and self.trainer.limit_val_batches:
                self._known("val")
        kinds = getattr(data, "word_kinds", None)
        self._parse = self.parser or (KnownWords(**kinds) if kinds else None)

    def use_vocabulary(self, vocabulary: Any) -> None:
        """The words that captions are written in; ValueError unless they are those of the network and its weights."""
        if len(vocabulary) != self.net.vocabulary:
            raise ValueError(
                f"the network has vocabulary={self.net.vocabulary} words, but the data have {len(vocabulary)}: build "
                f"it with vocabulary={len(vocabulary)}"
            )
        words = self._words_of_weights
        if words is not None and words != list(vocabulary.words):
            differing = [pair for pair in zip(words, vocabulary.words, strict=False) if pair[0] != pair[1]]
            said = (
                f"{differing[0][0]!r} was where the data have {differing[0][1]!r}" if differing else "others are more"
            )
            raise ValueError(
                f"the checkpoint was trained with other words ({said}): evaluate it with the vocabulary of its training"
            )
        self.vocabulary = vocabulary

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["words"] = list(self.vocabulary.words)
        checkpoint["train_loss_so_far"] = (float(self._loss_sum), self._loss_steps)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._words_of_weights = checkpoint.get("words")
        if self.vocabulary is not None:
            self.use_vocabulary(self.vocabulary)
        self._loss_sum, self._loss_steps = checkpoint.get("train_loss_so_far", (0.0, 0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=self.lr)

    def on_fit_start(self) -> None:
        self.net.train()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        graph, captions = batch["graph"], batch["captions"]
        rate = self.sampling.at(self.current_epoch) if self.sampling else 0
        logits = sampled_logits(self.net, graph, captions, rate) if rate else self.net(graph, captions)["logits"]
        loss = caption_loss(logits.float(), captions, batch["caption_masks"])
        if self.trainer.world_size > 1:  # the mean over processes is then the mean over all words of the step
            words = (batch["caption_masks"][:, 1:] > 0).sum().to(loss)
            everyones = words.clone()
            dist.all_reduce(everyones)
            loss = loss * words * self.trainer.world_size / everyones.clamp(min=1)
        stop_unless_finite(self, loss, batch["index"].tolist(), lambda: "the loss of the words", batch_idx)
        self._loss_sum = self._loss_sum + loss.detach().double()
        self._loss_steps += 1
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_train_epoch_start(self) -> None:
        self._loss_sum, self._loss_steps = 0.0, 0

    def epoch_losses(self, stage: str) -> dict[str, float]:
        """The mean loss of this epoch's training batches over all processes; a collective call."""
        if stage != "train":
            return {}
        total, steps = self._summed([float(self._loss_sum), self._loss_steps])
        return {"loss": total / steps} if steps else {}

    def captions(self, graph: Mapping[str, Tensor], greedy: bool = False) -> list[list[Sentence]]:
        """`sentences` or fewer captions of each graph, best first.

        A score is the sum of the words' log-probabilities in greedy decoding and their mean in a beam search, as the
        published code has it.
        """
        if greedy or self.beam_width == 1:
            said = self.net.greedy(graph, self.max_words)
            pairs = zip(said["words"].tolist(), said["logprobs"].tolist(), strict=True)
            return [[self._sentence(words, scores)] for words, scores in pairs]
        beams = self.net.beam(graph, self.beam_width, self.sentences, self.max_words, self.reorder_all)
        found = []
        for rows in zip(*(part.tolist() for part in beams), strict=True):
            words, logprobs, scores, count = rows
            alive = [place for place in range(count) if place == 0 or scores[place] > ENDED / (2 * self.max_words)]
            found.append([self._sentence(words[place], logprobs[place], scores[place]) for place in alive])
        return found

    def _sentence(self, words: Sequence[int], logprobs: Sequence[float], score: float | None = None) -> Sentence:
        written = [word for word in words if word >= 0]
        # as in the reference an end that is a beam's first word does not end it, yet nothing behind it is said
        length = written.index(EOS) + 1 if EOS in written else len(written)
        of_words = tuple(logprobs[:length])
        return Sentence(self.vocabulary.decode(written), sum(of_words) if score is None else score, of_words)

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation()

    on_test_epoch_start = on_validation_epoch_start

    def _start_evaluation(self) -> None:
        self._written, self._grounding = CollectedCaptions(), WordGrounding()
        self._sums = [0.0, 0.0, 0.0, 0.0]  # loss and words, exchanged pairs and pairs

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, "val", greedy=True)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, "test", greedy=False)

    def _evaluate(self, batch: Mapping[str, Any], split: str, greedy: bool) -> None:
        graph, captions, masks = batch["graph"], batch["captions"], batch["caption_masks"]
        said = self.net(graph, captions)
        losses = caption_loss(said["logits"].float(), captions, masks, per_sample=True)
        words = (masks[:, 1:] > 0).sum(1)
        self._sums[0] += float((losses.double() * words).sum())
        self._sums[1] += float(words.sum())
        if "word_nodes" in batch:
            self._ground(batch, said["attention"], split)
        written = self.captions(graph, greedy)
        texts = [[sentence.text for sentence in sentences] for sentences in written]
        references = [self._known(split)[name] for name in batch["names"]]
        self._written.add(batch["index"].tolist(), batch["names"], texts, references, batch["image_ids"])
        if not self.swap_objects:
            return
        others = [sentences[0].text for sentences in self.captions(with_objects_exchanged(graph), greedy)]
        for nodes, before, after in zip(batch["nodes"], texts, others, strict=True):
            if pair := object_pair(nodes.names, nodes.types):
                self._sums[2] += names_exchanged(before[0], after, *pair)
                self._sums[3] += 1

    def _known(self, split: str) -> dict[str, list[str]]:
        """The references of a split by the names of its samples."""
        if split not in self._references:
            self._references[split] = self.trainer.datamodule.references(split)
        return self._references[split]

    def _ground(self, batch: Mapping[str, Any], attention: Tensor, split: str) -> None:
        """Compare what explains the reference's words with the nodes that they speak of; attention: (B, T - 1, N)."""
        graph = batch["graph"]
        known = batch["word_nodes"][:, 1:], graph["node_types"], graph["attn_masks"]
        self._grounding.add("attention", attention, *known)
        if split != "test":
            return
        for method, relevance in word_relevance(self.net, graph, batch["captions"], self.word_methods).items():
            self._grounding.add(method, relevance, *known)
        self._grounding.add("random", random_relevance(batch["index"], *attention.shape[1:]), *known)
        self._grounding.add_chance(*known)

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._end_evaluation("test")

    def _end_evaluation(self, stage: str) -> None:
        loss, words, exchanged, pairs = self._summed(self._sums)
        written = self._written.gathered()
        scores = {"loss": loss / max(words, 1)}
        scores |= caption_scores(written.predictions, written.references, self.metrics, self.jars, self._parse).corpus
        if pairs:
            scores["swap"] = exchanged / pairs
        table = self._grounding.table()
        if table:
            scores["grounding"] = table["attention"]["node"]
        if stage == "test":
            scores |= self._variety(written)
        self._start_evaluation()
        if not self.trainer.sanity_checking:
            self.last_scores, self.last_table = scores, table if stage == "test" and table else None
        logged = {f"{stage}/{name}": value for name, value in scores.items()}
        if stage == "test":
            rows = ((method, name, share) for method, row in table.items() for name, share in row.items())
            logged |= {f"test/{method}/{name}": share for method, name, share in rows if name != "words"}
        # all processes hold the same numbers; their maximum is exactly that number, their mean may be rounded
        self.log_dict(logged, sync_dist=True, reduce_fx="max")

    def _variety(self, written: WrittenCaptions) -> dict[str, float]:
        """How many words the captions use and have, and how much those of one graph and of an image's graphs differ."""
        said = list(written.predictions.values())
        graphs = ([written.predictions[name] for name in names] for names in written.images.values())
        sources = {"sentences": written.sentences.values(), "graphs": graphs}
        counts = {"num_words": float(vocabulary_size(said)), "avg_len": mean_length(said)}
        return counts | diversity_by_source(sources, self._known("test").values())

    def _summed(self, numbers: Sequence[float]) -> list[float]:
        """The numbers summed over all processes."""
        own = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        if self.trainer.world_size > 1:
            dist.all_reduce(own)
        return own.tolist()

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """index (list of B), names (B,) and captions, a list of `Sentence` for each graph."""
        return {
            "index": batch["index"].tolist(),
            "names": batch["names"],
            "captions": self.captions(batch["graph"]),
        }
