"""A checkpoint is complete or absent, and a failed save leaves the one before."""

import pytest
import torch

from lightning_xai.callbacks.atomic_checkpoint import AtomicCheckpointIO


class Unpicklable:
    def __reduce__(self):
        raise OSError("the disk is full")


def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path):
    file = tmp_path / "runs" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, file)
    with pytest.raises(OSError, match="disk is full"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(1000), "step": Unpicklable()}, file)
    assert torch.load(file, weights_only=True) == {"step": 1}
    assert [path.name for path in file.parent.iterdir()] == ["last.ckpt"]


def test_options_of_remote_storage_are_refused(tmp_path):
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"key": 1})
