"""The one way by which pictures reach the loggers of a trainer and the run's folder."""

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from PIL import Image


def log_picture(trainer: pl.Trainer, name: str, picture: np.ndarray, step: int) -> Path:
    """Give a picture uint8 (h, w, 3) to every logger that takes pictures and write it as a file; returns its path.

    name: what is shown, with slashes between its parts; it stays the same from step to step. The file is
    `pictures/<name>/step_<step>.png` in the trainer's default_root_dir. W&B is given the picture by `log_image`,
    TensorBoard by `add_image`; a logger with neither (CSV) holds numbers only, so the file is all there is.
    """
    file = Path(trainer.default_root_dir) / "pictures" / name / f"step_{step:08d}.png"
    write_picture(file, picture)
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=name, images=[picture], step=step)
        elif hasattr(logger.experiment, "add_image"):
            logger.experiment.add_image(name, picture, global_step=step, dataformats="HWC")
    return file


def write_picture(file: Path, picture: np.ndarray) -> None:
    """Write a picture as PNG; a reader never finds half a file."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"{file.name}: a picture is uint8 (h, w, 3), not {picture.dtype} {picture.shape}")
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    Image.fromarray(picture).save(unfinished, format="PNG")
    unfinished.replace(file)
