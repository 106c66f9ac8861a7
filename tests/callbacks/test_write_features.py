from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_xai.callbacks.write_features import WriteFeatures


def process(rank, count):
    strategy = SimpleNamespace(barrier=lambda name: None)
    return SimpleNamespace(global_rank=rank, world_size=count, is_global_zero=rank == 0, strategy=strategy)


def batch(*indices):
    index = torch.tensor(indices)
    return {"index": index, "features": index[:, None] * torch.ones(1, 3), "logits": index[:, None].bfloat16() + 0.5}


def test_all_processes_rows_end_in_one_file_in_order(tmp_path):
    file = tmp_path / "new/features.npz"
    first, second = WriteFeatures(file), WriteFeatures(file)
    for writer, batches in ((first, [batch(4, 1), batch(0)]), (second, [batch(3, 3), batch(2)])):
        for prediction in batches:
            writer.write_on_batch_end(None, None, prediction, None, None, 0, 0)
    second.write_on_epoch_end(process(1, 2))
    assert not file.exists()
    first.write_on_epoch_end(process(0, 2))
    with np.load(file) as arrays:
        assert arrays["index"].tolist() == [0, 1, 2, 3, 4]
        assert np.array_equal(arrays["features"], np.arange(5)[:, None] * np.ones((1, 3)))
        assert arrays["logits"].dtype == np.float32 and arrays["logits"][:, 0].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert [path.name for path in file.parent.iterdir()] == ["features.npz"]


def test_a_task_without_features_is_named(tmp_path):
    writer = WriteFeatures(tmp_path / "features.npz")
    with pytest.raises(ValueError, match=r"int\.predict_step gives no features, logits; debug sets need a classifier"):
        writer.write_on_batch_end(None, 3, {"index": torch.tensor([0])}, None, None, 0, 0)
