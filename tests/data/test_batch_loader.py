"""One loader for all data modules."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import SequentialSampler

from lightning_xai.data.batch_loader import batch_loader


def loader(workers: int = 0, device: str | None = None, **arguments):
    data = list(range(7))
    strategy = SimpleNamespace(root_device=torch.device(device or "cpu"))
    trainer = SimpleNamespace(strategy=strategy) if device else None
    return batch_loader(data, SequentialSampler(data), 2, workers, list, trainer, **arguments)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_in_order_leave_the_global_random_state_alone(workers):
    before = torch.get_rng_state()
    assert list(loader(workers)) == [[0, 1], [2, 3], [4, 5], [6]]
    assert list(loader(workers, drop_last=True, prefetch_factor=1)) == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("device", "pinned"), [(None, False), ("cpu", False), ("cuda:1", True)])
def test_memory_is_pinned_for_the_trainers_gpu_only(device, pinned, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a machine with a GPU that may not be used
    assert loader(device=device).pin_memory is pinned
