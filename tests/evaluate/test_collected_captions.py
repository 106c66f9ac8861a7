"""Captions: each sample once, on one process and on two."""

import os
import sys

import pytest
import torch

from lightning_xai.evaluate.collected_captions import CollectedCaptions


def test_each_sample_counts_once_and_in_the_order_of_the_data_set():
    captions = CollectedCaptions()
    captions.add(torch.tensor([5, 2]), ("e", "b"), (["five"], ["two", "zwei"]), (("5",), ("2", "II")))
    captions.add([2], ["b"], [["again"]], [["no"]])
    predictions, references, sentences, images = captions.gathered()
    assert list(predictions.items()) == [("b", "two"), ("e", "five")]
    assert references == {"b": ["2", "II"], "e": ["5"]}
    assert sentences == {"b": ("two", "zwei"), "e": ("five",)}
    assert images == {"b": ["b"], "e": ["e"]}


def test_samples_of_one_image_are_known():
    captions = CollectedCaptions()
    captions.add([3, 1, 2], ["c", "a", "b"], [["x"], ["y"], ["z"]], [["r"]] * 3, ["one", "two", "one"])
    assert captions.gathered().images == {"two": ["a"], "one": ["b", "c"]}


def test_what_cannot_be_collected():
    captions = CollectedCaptions()
    with pytest.raises(ValueError, match="no caption was written"):
        captions.gathered()
    captions.add([0, 1], ["a", "a"], [["x"], ["y"]], [["r"], ["r"]])
    with pytest.raises(ValueError, match="two samples are called 'a'"):
        captions.gathered()


def process(rank: int, folder: str) -> None:
    """One of two processes, which share sample 2."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    captions = CollectedCaptions()
    numbers = [0, 2] if rank == 0 else [2, 1]
    names = [f"n{number}" for number in numbers]
    captions.add(numbers, names, [[f"by {rank}"]] * 2, [[name] for name in names])
    predictions, references, sentences, _ = captions.gathered()
    assert sentences["n1"] == ("by 1",)
    assert list(predictions.items()) == [("n0", "by 0"), ("n1", "by 1"), ("n2", "by 0")]
    assert references == {"n0": ["n0"], "n1": ["n1"], "n2": ["n2"]}
    torch.distributed.destroy_process_group()


def test_two_processes(in_two_processes, tmp_path):
    in_two_processes(__file__, tmp_path)


if __name__ == "__main__":
    process(int(os.environ["RANK"]), sys.argv[1])
