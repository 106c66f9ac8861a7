"""The loader of every data module."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler


def batch_loader(
    dataset: Dataset,
    sampler: Sampler,
    batch_size: int,
    num_workers: int,
    collate: Callable[[list], dict[str, Any]],
    trainer: pl.Trainer | None = None,
    drop_last: bool = False,
    prefetch_factor: int | None = None,
) -> DataLoader:
    """Batches of `dataset` in the sampler's order; in pinned memory only where the trainer's device is a GPU."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
        generator=torch.Generator(),  # an iterator draws its workers' seeds: not from the global random state
    )
