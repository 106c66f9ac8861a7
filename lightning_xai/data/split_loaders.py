"""Data sets by split as loaders, for data modules that only say which data sets there are."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_xai.data.batch_loader import batch_loader
from lightning_xai.data.samplers import EvaluationSampler, TrainingSampler, resume_position, strided_order


class SplitLoaders(pl.LightningDataModule):
    """Loaders over the data sets that a subclass makes (`dataset`) and puts together (`collate`).

    batch_size is per process. Training samples are shuffled by seed and epoch, alike for any number of processes and
    after a resume in mid-epoch; evaluation takes each sample once. eval_batch_size, eval_num_workers: like those of
    training where they are None.
    """

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: int | None,
        num_workers: int,
        prefetch_factor: int = 2,
        seed: int = 0,
        eval_num_workers: int | None = None,
    ):
        super().__init__()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers = num_workers
        self.eval_num_workers = num_workers if eval_num_workers is None else eval_num_workers
        self.prefetch_factor, self.seed = prefetch_factor, seed

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

    def counted(self, dataset: Dataset) -> str:
        """How messages speak of a data set's length."""
        return f"{len(dataset)} samples"

    def train_dataloader(self) -> DataLoader:
        dataset = self.dataset("train")
        rank, replicas = self._process()
        if len(dataset) < self.batch_size * replicas:
            raise ValueError(
                f"{self.counted(dataset)} do not fill one batch of batch_size={self.batch_size} on {replicas} "
                f"process(es); lower it, or have at least {self.batch_size * replicas}."
            )
        order = partial(strided_order, len(dataset), rank=rank, replicas=replicas, seed=self.seed)
        return self._training_loader(dataset, self._training_sampler(order))

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader("predict")

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _training_sampler(self, order: Callable[[int], list[int]]) -> TrainingSampler:
        """This process's `order(epoch)`, from where the run that asks for it goes on."""
        epoch, batches = resume_position(self.trainer)
        if batches:  # Lightning warns of every loader without a state of its own, while this one starts where it should
            warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        return TrainingSampler(order, start=(epoch, batches * self.batch_size))

    def _evaluation_sampler(self, dataset: Dataset) -> EvaluationSampler:
        return EvaluationSampler(len(dataset), self.eval_batch_size, *self._process())

    def _training_loader(self, dataset: Dataset, sampler: Sampler) -> DataLoader:
        return self._loader(dataset, sampler, self.batch_size, self.num_workers, drop_last=True)

    def _evaluation_loader(self, split: str) -> DataLoader:
        dataset = self.dataset(split)
        return self._loader(dataset, self._evaluation_sampler(dataset), self.eval_batch_size, self.eval_num_workers)

    def _loader(
        self, dataset: Dataset, sampler: Sampler, batch_size: int, num_workers: int, drop_last: bool = False
    ) -> DataLoader:
        return batch_loader(
            dataset, sampler, batch_size, num_workers, self.collate, self.trainer, drop_last, self.prefetch_factor
        )
