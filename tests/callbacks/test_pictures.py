"""Pictures reach every logger that takes them, and the run's folder."""

from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from lightning_xai.callbacks.pictures import log_picture

PICTURE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


class LikeWandb:
    def __init__(self):
        self.seen = []

    def log_image(self, key, images, step):
        self.seen.append((key, images, step))


class LikeTensorBoard:
    def __init__(self):
        self.seen = []
        self.experiment = SimpleNamespace(add_image=lambda *args, **kwargs: self.seen.append((args, kwargs)))


class NumbersOnly:
    experiment = SimpleNamespace()


def test_every_logger_gets_the_picture_once(tmp_path):
    first, second, third = LikeWandb(), LikeTensorBoard(), NumbersOnly()
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), loggers=[third, first, second])
    file = log_picture(trainer, "attention/image_7", PICTURE, 12)
    assert file == tmp_path / "pictures" / "attention" / "image_7" / "step_00000012.png"
    np.testing.assert_array_equal(np.asarray(Image.open(file)), PICTURE)
    ((key, images, step),) = first.seen
    assert (key, step) == ("attention/image_7", 12)
    assert images[0] is PICTURE
    ((args, kwargs),) = second.seen
    assert args[0] == "attention/image_7"
    assert kwargs == {"global_step": 12, "dataformats": "HWC"}
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_real_loggers(tmp_path, monkeypatch):
    """TensorBoard's event file and an offline W&B run hold the picture; CSV has no place for it."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loggers = [
        TensorBoardLogger(tmp_path, name="tb", version=""),
        CSVLogger(tmp_path, name="csv", version=""),
        WandbLogger(save_dir=tmp_path, offline=True, settings={"x_disable_stats": True}),
    ]
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        logger=loggers,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    log_picture(trainer, "attention/image_7", PICTURE, 3)
    loggers[0].experiment.flush()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tb")).Reload()
    assert events.Tags()["images"] == ["attention/image_7"]
    import wandb

    wandb.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/attention/*.png"))


@pytest.mark.parametrize("wrong", [PICTURE[..., 0], PICTURE / 255, PICTURE.transpose(2, 0, 1)])
def test_something_else_than_a_picture(tmp_path, wrong):
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), loggers=[])
    with pytest.raises(ValueError, match=r"a picture is uint8 \(h, w, 3\), not"):
        log_picture(trainer, "x", wrong, 0)
