"""Loaders over data sets by split: whole evaluations, training that goes on where it was."""

import warnings

import pytest
from torch.utils.data import Dataset

from lightning_xai.data import split_loaders
from lightning_xai.data.samplers import strided_order
from lightning_xai.data.split_loaders import SplitLoaders


class Keys(Dataset):
    """Its samples are what they are asked for by."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key):
        return key


class Module(SplitLoaders):
    collate = staticmethod(list)

    def dataset(self, split: str) -> Keys:
        return Keys({"train": 10, "val": 3, "test": 4, "predict": 5}[split])


def test_evaluation_takes_each_sample_once_and_in_order():
    data = Module(4, 2, 0)
    assert list(data.val_dataloader()) == [[0, 1], [2]]
    assert list(data.test_dataloader()) == [[0, 1], [2, 3]]
    assert list(data.predict_dataloader()) == [[0, 1], [2, 3], [4]]
    assert len(data.train_set) == 10 and len(data.val_set) == 3


def test_sizes_and_workers_of_evaluation_are_those_of_training_unless_given():
    data = Module(4, None, 1, prefetch_factor=3)
    assert data.val_dataloader().batch_size == 4 and data.val_dataloader().num_workers == 1
    assert data.val_dataloader().prefetch_factor == data.train_dataloader().prefetch_factor == 3
    assert Module(4, 2, 1, eval_num_workers=0).val_dataloader().num_workers == 0


def test_training_goes_on_in_the_middle_of_an_epoch_without_a_warning(monkeypatch):
    def trained():
        return list(Module(3, None, 0, seed=7).train_dataloader())

    whole = [(0, index) for index in strided_order(10, 0, 0, 1, 7)]
    assert trained() == [whole[:3], whole[3:6], whole[6:9]], "the last batch is not full"
    monkeypatch.setattr(split_loaders, "resume_position", lambda trainer: (1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        later = [(1, index) for index in strided_order(10, 1, 0, 1, 7)]
        assert trained() == [later[6:9]]
        warnings.warn("Be aware: your dataloader is not resumable by its own state", stacklevel=1)


def test_fewer_samples_than_a_batch():
    expected = r"10 samples do not fill one batch of batch_size=11 on 1 process\(es\); lower it, or have at least 11"
    with pytest.raises(ValueError, match=expected):
        Module(11, None, 0).train_dataloader()
