"""Random numbers of a step depend on the step alone."""

from types import SimpleNamespace

import torch

from lightning_xai.callbacks.step_seed import StepSeed


def draw(seed: int, batch: int, rank: int = 0, processes: int = 2, epoch: int = 0) -> list[float]:
    torch.rand(batch + 3)  # whatever was drawn before
    trainer = SimpleNamespace(current_epoch=epoch, world_size=processes, global_rank=rank)
    StepSeed(seed).on_train_batch_start(trainer, SimpleNamespace(device=torch.device("cpu")), None, batch)
    return torch.rand(4).tolist()


def test_same_step_same_numbers():
    assert draw(1, 7) == draw(1, 7)


def test_other_step_process_or_seed_other_numbers():
    drawn = [draw(1, 7), draw(1, 8), draw(1, 7, rank=1), draw(2, 7), draw(1, 7, epoch=1)]
    assert len({tuple(numbers) for numbers in drawn}) == 5
