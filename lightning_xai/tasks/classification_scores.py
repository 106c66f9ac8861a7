"""Top-1 and top-5 accuracy over all processes, each sample counted once."""

import math

import torch
import torch.distributed as dist
from torch import Tensor


class ClassificationScores:
    """Collects what an evaluation says about each sample; the numbers are the same on any number of processes.

    acc1 and acc5 are the shares of samples whose label is the best or among the five best classes (all of them where
    there are fewer), loss is the mean over samples, summed exactly so that the order does not matter. A sample that
    comes twice (a data set may put a readable picture in the place of an unreadable one) counts once.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._rows: list[tuple[Tensor, ...]] = []

    def update(self, logits: Tensor, labels: Tensor, index: Tensor, losses: Tensor) -> None:
        """logits: (B, C). labels, index, losses: (B,), the loss of each sample."""
        best = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        rows = (index, labels, best[:, 0], hits.any(1), losses.detach().double())
        self._rows.append(tuple(values.cpu() for values in rows))

    def compute(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The numbers, and of each sample `index`, `label`, `predicted`, `correct`, by index; a collective call."""
        own = [torch.cat(column) for column in zip(*self._rows, strict=True)] if self._rows else None
        parts = [own]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, own)
        parts = [part for part in parts if part is not None]
        if not parts:
            raise ValueError("there are no samples to score: the evaluation had no batch")
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        order = columns[0].argsort(stable=True)
        order = order[columns[0][order].diff(prepend=columns[0].new_tensor([-1])) > 0]
        index, labels, predicted, in_five, losses = (column[order] for column in columns)
        correct = predicted == labels
        numbers = {
            "acc1": int(correct.sum()) / len(index),
            "acc5": int(in_five.sum()) / len(index),
            "loss": math.fsum(losses.tolist()) / len(index),
        }
        return numbers, {"index": index, "label": labels, "predicted": predicted, "correct": correct}


def score_table(scores: dict[str, float], samples: int | None = None) -> str:
    """The numbers on one line, accuracies in percent."""
    of = "" if samples is None else f"  ({samples} images)"
    return f"top-1 {100 * scores['acc1']:.2f} %  top-5 {100 * scores['acc5']:.2f} %  loss {scores['loss']:.4f}{of}"
