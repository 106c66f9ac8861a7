"""Numbers of images: each image once, on one process and on two."""

import os
import sys

import pytest
import torch

from lightning_xai.evaluate.image_scores import ImageScores


def test_each_image_counts_once_and_in_the_order_of_ids():
    scores = ImageScores()
    scores.add([5, 2], {"a": torch.tensor([50.0, 20.0]), "b": torch.tensor([[5, 6], [2, 3]])})
    scores.add([2, 3], {"a": torch.tensor([99.0, 30.0]), "b": torch.tensor([[9, 9], [3, 4]])})
    gathered = scores.gathered()
    assert gathered["a"].tolist() == [20, 30, 50]
    assert gathered["b"].tolist() == [[2, 3], [3, 4], [5, 6]]


def test_what_cannot_be_collected():
    with pytest.raises(ValueError, match="no image was evaluated"):
        ImageScores().gathered()
    with pytest.raises(ValueError, match="2 image ids, but a of 3 images"):
        ImageScores().add([1, 2], {"a": torch.zeros(3)})


def process(rank: int, folder: str) -> None:
    """One of two processes, which share image 4."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    scores = ImageScores()
    ids = [0, 2, 4] if rank == 0 else [4, 1, 3]
    scores.add(ids, {"a": 10.0 * torch.tensor(ids)})
    assert scores.gathered()["a"].tolist() == [0, 10, 20, 30, 40]
    torch.distributed.destroy_process_group()


def test_two_processes(in_two_processes, tmp_path):
    in_two_processes(__file__, tmp_path)


if __name__ == "__main__":
    process(int(os.environ["RANK"]), sys.argv[1])
