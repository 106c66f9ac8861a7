"""Files of weights: what is read, what is refused, and that nothing in a file is run."""

import argparse
import pickle
from pathlib import Path

import pytest
import torch

from lightning_xai.nets.weight_files import listed, other_names, read_weight_file


class Trap:
    """Unpickling it creates a file."""

    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


def test_tensors_and_the_arguments_of_the_original_repository_are_read(tmp_path):
    saved = {"model": {"x": torch.arange(3)}, "args": argparse.Namespace(lr=0.1)}
    torch.save(saved, tmp_path / "checkpoint.pth")
    content = read_weight_file(tmp_path / "checkpoint.pth")
    assert torch.equal(content["model"]["x"], torch.arange(3))
    assert content["args"].lr == 0.1


def test_safetensors_are_read(tmp_path):
    pytest.importorskip("safetensors.torch").save_file({"x": torch.arange(3)}, tmp_path / "model.safetensors")
    assert torch.equal(read_weight_file(str(tmp_path / "model.safetensors"))["x"], torch.arange(3))


def test_what_cannot_be_read_gives_one_clear_error_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'missing\.pth' does not exist"):
        read_weight_file("missing.pth")
    Path("text.pth").write_text("not a checkpoint")
    Path("text.safetensors").write_text("not a checkpoint")
    Path("empty.pth").touch()
    torch.save({"x": torch.zeros(9999)}, "whole.pth")
    Path("cut.pth").write_bytes(Path("whole.pth").read_bytes()[:5000])
    Path("trap.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    torch.save({"model": Trap()}, "zipped_trap.pth")
    for name in ("text.pth", "empty.pth", "text.safetensors", "cut.pth", "trap.pth", "zipped_trap.pth"):
        with pytest.raises(ValueError, match=f"'{name}' cannot be read as a file of weights") as error:
            read_weight_file(name)
        assert "weights_only" not in str(error.value)  # torch's advice would run what is in the file
    assert not Path("trapped").exists()


def test_what_does_not_fit_is_named_and_hundreds_are_counted():
    own, given = {"a": 0, "b": 0}, {"b": 0, **dict.fromkeys((f"c{number}" for number in range(30)), 0)}
    said = listed(other_names(given, own))
    assert said == "missing a; unexpected c0, c1, c2, c3, c4, c5, c6, c7 and 22 more"
    assert listed(other_names(own, own)) == ""
