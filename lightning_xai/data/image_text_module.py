"""Pairs of a picture and a text as batches: what every data module of such pairs shares."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_xai.data.detection_loader import detection_loader
from lightning_xai.data.evaluation_resize import CropResize
from lightning_xai.data.samplers import EvaluationSampler, TrainingSampler, resume_position, strided_order

Pair = tuple[Tensor, dict[str, Any]]


def collate_pairs(samples: Sequence[Pair]) -> dict[str, Any]:
    """Samples (image uint8 (3, h, w), {"text", "index"}) as images (B, 3, h, w), texts, a tuple, and index (B,)."""
    images, targets = zip(*samples, strict=True)
    return {
        "images": torch.stack(images),
        "texts": tuple(target["text"] for target in targets),
        "index": torch.tensor([int(target["index"]) for target in targets]),
    }


class ImageTextModule(pl.LightningDataModule):
    """Loaders over data sets of pairs, which a subclass makes: see `dataset`.

    image_size: side in pixels of the images that the network gets: short side resized (bicubic), centre cropped.
    batch_size is per process. Training pairs are shuffled by seed and epoch, alike for any number of processes and
    after a resume in mid-epoch.
    """

    reads_text = True

    def __init__(
        self,
        image_size: int = 224,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        prefetch_factor: int = 2,
        seed: int = 0,
    ):
        super().__init__()
        self.evaluation_transform = CropResize(image_size, share=1.0)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.prefetch_factor, self.seed = num_workers, prefetch_factor, seed

    collate = staticmethod(collate_pairs)

    @abstractmethod
    def dataset(self, split: str) -> Dataset:
        """The pairs of "train", "val", "test" or "predict", by index or (epoch, index); the same object each time."""

    @property
    def train_set(self) -> Dataset:
        return self.dataset("train")

    @property
    def val_set(self) -> Dataset:
        return self.dataset("val")

    def picture_batch(self, picture: Tensor, texts: Sequence[str]) -> dict[str, Any]:
        """One picture, uint8 (3, h, w), with each of the texts: as many pairs of an evaluation batch."""
        image, _ = self.evaluation_transform(picture, {})
        return self.collate([(image, {"text": text, "index": place}) for place, text in enumerate(texts)])

    def train_dataloader(self) -> DataLoader:
        dataset = self.train_set
        rank, replicas = self._process()
        if len(dataset) < self.batch_size * replicas:
            raise ValueError(
                f"{len(dataset)} pairs do not fill one batch of batch_size={self.batch_size} on {replicas} process(es);"
                " lower it."
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
