"""Which samples a process sees, in which order: a function of seed and epoch alone."""

from collections.abc import Callable, Iterator
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DistributedSampler, Sampler

if TYPE_CHECKING:
    import pytorch_lightning as pl


def epoch_order(length: int, epoch: int, seed: int = 0, shuffle: bool = True) -> list[int]:
    """The whole set's order in one epoch, the same on every process; `seed=0` is Deformable DETR's own order."""
    if not shuffle:
        return list(range(length))
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


def _wrapped(indices: list[int], length: int) -> list[int]:
    return (indices * ceil(length / len(indices)))[:length] if indices else []


def strided_order(length: int, epoch: int, rank: int, replicas: int, seed: int = 0, shuffle: bool = True) -> list[int]:
    """Every `replicas`-th sample: together, the processes' k-th batches are what one process would take as its k-th.

    So a run on N processes of batch size b and a run on one process of batch size N·b train on the same global
    batches. Samples that do not fill a round of all processes are left out.
    """
    return epoch_order(length, epoch, seed, shuffle)[: length // replicas * replicas][rank::replicas]


def contiguous_order(
    length: int, epoch: int, rank: int, replicas: int, seed: int = 0, shuffle: bool = True
) -> list[int]:
    """A contiguous chunk for each process, the list wrapped to a multiple of `replicas`.

    Source: `DistributedSampler` of Deformable DETR.
    """
    chunk = ceil(length / replicas)
    indices = _wrapped(epoch_order(length, epoch, seed, shuffle), chunk * replicas)
    return indices[chunk * rank : chunk * (rank + 1)]


def node_order(
    length: int, epoch: int, rank: int, replicas: int, local_rank: int, local_size: int, seed: int = 0, shuffle=True
) -> list[int]:
    """Only samples with index % `local_size` = `local_rank`, which are those this process holds in memory.

    Processes with the same local rank share them in strides, wrapped to equal length.
    Source: `NodeDistributedSampler` of Deformable DETR (`--cache_mode`).
    """
    own = [i for i in epoch_order(length, epoch, seed, shuffle) if i % local_size == local_rank]
    own = _wrapped(own, ceil(length / replicas) * replicas // local_size)
    return own[rank // local_size :: replicas // local_size]


# Both samplers are DistributedSamplers in name so that Lightning, whatever its flags, neither replaces nor wraps them;
# their parent's constructor, which would demand an initialised process group, is not for them.
class TrainingSampler(DistributedSampler):
    """Yields pairs (epoch, index): a persistent worker learns from them which epoch's augmentation to draw.

    `order(epoch)` gives this process's indices. An iteration of epoch `start[0]` begins after its first `start[1]`
    samples, as a run that resumes in mid-epoch does; `len` stays the whole epoch's. Lightning calls `set_epoch`.
    """

    def __init__(self, order: Callable[[int], list[int]], start: tuple[int, int] = (0, 0)):
        Sampler.__init__(self)
        self.order = order
        self.start = start
        self.epoch = start[0]
        self._length = len(order(self.epoch))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # A list, not a generator: workers prefetch at once, and the epoch must be the one at the time of the call.
        first = self.start[1] if self.epoch == self.start[0] else 0
        return iter([(self.epoch, index) for index in self.order(self.epoch)[first:]])


class EvaluationSampler(DistributedSampler):
    """Yields indices so that process r evaluates the batches r, r + N, ... that a single process would form.

    No sample is repeated to make the shares equal, and a batch has the same members (so the same padding) on 1 and
    on N processes: the metrics are the same. Shares differ by at most one batch. Only where there are fewer such
    batches than processes are they made smaller: a process without any would leave out the evaluation's hooks, in
    which the others wait for it.

    Raises: ValueError on every process when there are fewer samples than processes.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, replicas: int = 1):
        Sampler.__init__(self)
        if length < replicas:
            raise ValueError(f"{length} samples cannot be shared by {replicas} processes; use at most {length}.")
        members = batch_size if ceil(length / batch_size) >= replicas else length // replicas
        self.indices = [i for i in range(length) if i // members % replicas == rank]

    def set_epoch(self, epoch: int) -> None:
        """The order of an evaluation is the same in each epoch."""

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def resume_position(trainer: "pl.Trainer | None") -> tuple[int, int]:
    """Epoch and batch of it that the `fit` which now asks for its data begins with: (0, 0) for a fresh one.

    Lightning restores its counters before it asks for data, and expects a loader that goes on where they stand. A
    batch counts as done once its optimiser step is: a checkpoint written in the hook at a batch's end does not yet
    count that batch as completed, but a batch interrupted before it was processed is done again.
    """
    if trainer is None:
        return 0, 0
    fit_loop = trainer.fit_loop
    epoch, batches = fit_loop.epoch_progress.current.processed, fit_loop.epoch_loop.batch_progress
    if not fit_loop.restarting:
        return epoch, 0
    done = (
        batches.current.processed if batches.current.processed == batches.current.ready else batches.current.completed
    )
    epoch_unfinished = fit_loop.epoch_progress.current.started > epoch
    if batches.is_last_batch and done == batches.current.ready:
        return epoch + epoch_unfinished, 0
    return epoch, done
