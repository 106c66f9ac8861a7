"""Loaders over data sets of picture files, of which each process tells what it found faulty."""

import logging
import sys
from abc import abstractmethod
from typing import Any

from lightning_xai.data.picture_set import PictureSet
from lightning_xai.data.split_loaders import SplitLoaders

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test", "predict")


class PictureLoaders(SplitLoaders):
    """Loaders over sets of picture files, see `SplitLoaders`, which `setup` makes: None before it.

    Faulty pictures are told of in the epoch after they were found, and at the end.
    """

    _news_of_epoch = 0

    @abstractmethod
    def dataset(self, split: str) -> PictureSet | None:
        """The pictures of "train", "val", "test" or "predict"."""

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        if self.trainer is not None and self.trainer.current_epoch != self._news_of_epoch:
            self._news_of_epoch = self.trainer.current_epoch
            self._report()
        return batch

    def teardown(self, stage: str) -> None:
        self._report()

    def _report(self) -> None:
        """Say which pictures were found faulty since the last time; each process knows those that it was given."""
        for pictures in dict.fromkeys(map(self.dataset, SPLITS)):
            if pictures is not None and (news := pictures.news()):
                log.warning(f"{pictures.source}: {news}")

    def _say(self, line: str) -> None:
        # Neither Lightning's logger, which the command line silences, nor the standard output, which is for results.
        if self._process()[0] == 0:
            print(line, file=sys.stderr, flush=True)
