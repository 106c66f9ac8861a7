"""Data sets by split as loaders, for data modules that only say which data sets there are."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_xai.data.detection_loader import detection_loader
from lightning_xai.data.samplers import EvaluationSampler, TrainingSampler, resume_position, strided_order


class SplitLoaders(pl.LightningDataModule):
    """Loaders over the data sets that a subclass makes (`dataset`) and puts together (`collate`).

    batch_size is per process. Training samples are shuffled by seed and epoch, alike for any number of processes and
    after a resume in mid-epoch; evaluation takes each sample once.
    """

    def __init__(self, batch_size: int, eval_batch_size: int | None, num_workers: int, prefetch_factor: int, seed: int):
        super().__init__()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.prefetch_factor, self.seed = num_workers, prefetch_factor, seed

    @abstractmethod
    def dataset(self, split: str) -> Dataset:
        """The samples of "train", "val", "test" or "predict", by index or (epoch, index); the same object each time."""

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> dict[str, Any]:
        """Samples as a batch."""

    @property
    def train_set(self) -> Dataset:
        return self.dataset("train")

    @property
    def val_set(self) -> Dataset:
        return self.dataset("val")

    def train_dataloader(self) -> DataLoader:
        dataset = self.train_set
        rank, replicas = self._process()
        if len(dataset) < self.batch_size * replicas:
            raise ValueError(
                f"{len(dataset)} samples do not fill one batch of batch_size={self.batch_size} on {replicas} "
                "process(es); lower it."
            )
        epoch, batches = resume_position(self.trainer)
        order = partial(strided_order, len(dataset), rank=rank, replicas=replicas, seed=self.seed)
        sampler = TrainingSampler(order, start=(epoch, batches * self.batch_size))
        return self._loader(dataset, sampler, self.batch_size, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader("predict")

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _evaluation_loader(self, split: str) -> DataLoader:
        dataset = self.dataset(split)
        sampler = EvaluationSampler(len(dataset), self.eval_batch_size, *self._process())
        return self._loader(dataset, sampler, self.eval_batch_size)

    def _loader(self, dataset: Dataset, sampler: Sampler, batch_size: int, drop_last: bool = False) -> DataLoader:
        return detection_loader(
            dataset, sampler, batch_size, self.num_workers, self.collate, self.trainer, drop_last, self.prefetch_factor
        )
