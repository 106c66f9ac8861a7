"""The files of captions."""

import json

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_xai.callbacks.write_captions import WriteCaptions

BEST, OTHER = ("a dog", -0.5, (-0.25, -0.25, -1.0)), ("dog", -0.75, (-0.5, -1.0))


class Captioner(pl.LightningModule):
    def predict_step(self, batch, batch_idx):
        numbers = batch.tolist()
        return {"index": numbers, "names": [f"n{i}" for i in numbers], "captions": [[BEST, OTHER] for _ in numbers]}


@pytest.mark.parametrize(
    "format, entry",
    [
        (0, ["a dog"]),
        (1, ["a dog", -0.5, [-0.25, -0.25, -1.0]]),
        (2, [["a dog", -0.5], ["dog", -0.75]]),
        (3, [["a dog", -0.5, [-0.25, -0.25, -1.0]], ["dog", -0.75, [-0.5, -1.0]]]),
    ],
)
def test_the_published_formats(tmp_path, format, entry):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    for file in (None, str(tmp_path / "own" / "said.json")):
        trainer = pl.Trainer(
            accelerator="cpu", default_root_dir=tmp_path, callbacks=WriteCaptions(format, file), **quiet
        )
        trainer.predict(Captioner(), DataLoader([torch.tensor([2, 0]), torch.tensor([1])], batch_size=None))
        written = json.loads(
            (tmp_path / "captions.json" if file is None else tmp_path / "own" / "said.json").read_text()
        )
        assert list(written) == ["n0", "n1", "n2"] and written["n2"] == entry


def test_no_such_format():
    with pytest.raises(ValueError, match="format=4 of captions must be one of 0, 1, 2, 3"):
        WriteCaptions(4)
