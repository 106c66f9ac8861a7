"""What a classifier makes of a folder of images: one batched pass over all processes, kept for the next time."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from lightning_xai.callbacks.write_features import WriteFeatures
from lightning_xai.data.debugset_selection import ClassifiedImages
from lightning_xai.data.image_folder import ImageFolder, ImageFolderModule


def classified_images(
    task: pl.LightningModule,
    trainer: pl.Trainer,
    pictures: ImageFolder,
    cache: Path,
    described: str = "",
    batch_size: int = 64,
    num_workers: int = 2,
) -> ClassifiedImages | None:
    """Paths, labels, features and logits of `pictures`; on processes other than the first None.

    The file in the folder `cache` is named after everything the numbers depend on: the network and its weights, the
    files with their sizes and times, the trainer's precision, and `described` (in words, how images are prepared).
    Images that cannot be read are left out.

    Raises: ValueError where the trainer would predict a part of them only.
    """
    limit = trainer.limit_predict_batches
    if isinstance(limit, int) or limit < 1:  # 1 is one batch, 1.0 all of them
        raise ValueError(
            f"limit_predict_batches={limit} would leave images of {pictures.where} out; give a smaller folder "
            "to look at fewer."
        )
    file = cache / f"features_{features_key(task, trainer, pictures, described)}.npz"
    if not file.is_file():
        module = ImageFolderModule(
            ".",
            class_names=pictures.class_names,
            eval_transform=pictures.transform,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        module.predict_set = pictures
        callbacks = list(trainer.callbacks)
        trainer.callbacks.append(WriteFeatures(file))
        try:
            trainer.predict(task, datamodule=module, return_predictions=False)
        finally:
            trainer.callbacks = callbacks
    if not trainer.is_global_zero:
        return None
    with np.load(file, allow_pickle=False) as arrays:
        index, features, logits = arrays["index"], arrays["features"], arrays["logits"]
    if len(index) < len(pictures):
        print(
            f"{pictures.where}: {len(pictures) - len(index)} pictures cannot be read and are left out.", file=sys.stderr
        )
    paths = [str(pictures.path(number)) for number in index.tolist()]
    return ClassifiedImages(paths, pictures.labels[index], features, logits)


def features_key(task: pl.LightningModule, trainer: pl.Trainer, pictures: ImageFolder, described: str = "") -> str:
    """Name of everything that the features and logits of `pictures` depend on."""
    key = hashlib.sha256(f"{task.net!r}\n{trainer.precision}\n{described}\n".encode())
    for name, tensor in (*task.named_parameters(), *task.named_buffers()):
        key.update(name.encode())
        key.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for number in range(len(pictures)):
        path = pictures.path(number)
        status = path.stat()
        key.update(f"{path.absolute()}\n{status.st_size}\n{status.st_mtime_ns}\n".encode())
    return key.hexdigest()[:16]
