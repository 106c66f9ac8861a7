"""plot attention, plot data, plot log: pictures of one checkpoint, of training data, of finished epochs."""

import argparse
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_xai.callbacks.attention_views import QUERY_VIEWS, Selection, plot_attention
from lightning_xai.callbacks.pictures import write_picture
from lightning_xai.draw.curves import DEFAULT_FIELDS, draw_curves
from lightning_xai.draw.training_data import LabelledImage, box_density, draw_box_density, draw_training_data
from lightning_xai.draw.training_log import read_training_log

CONFIGURED = "All other options are those of `fit`: --config FILE, --model.x, --data.x, --trainer.x."


def run(command: str, words: list[str]) -> int:
    return {"plot attention": attention, "plot data": data, "plot log": log}[command](words)


def attention(words: list[str]) -> int:
    """Where the deformable attention of chosen detections, or of encoder positions, looks in one picture."""
    parser = argparse.ArgumentParser("lightning-xai plot attention", description=attention.__doc__, epilog=CONFIGURED)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, metavar="FILE", help="a picture file")
    source.add_argument("--index", type=int, help="a sample of the validation data instead of a file")
    parser.add_argument("--ckpt_path", type=Path, help="checkpoint of this project (or give --model.checkpoint FILE)")
    parser.add_argument("--out", type=Path, help="folder of the pictures (default: <run folder>/attention/<picture>)")
    parser.add_argument("--part", choices=("decoder", "encoder"), default="decoder")
    parser.add_argument("--layer", type=int, nargs="+", help="layers (default: all)")
    parser.add_argument("--head", type=int, nargs="+", help="heads (default: all)")
    parser.add_argument("--level", type=int, nargs="+", help="feature levels (default: all)")
    parser.add_argument("--query", type=int, nargs="+", help="object queries (default: the best detections)")
    parser.add_argument("--position", type=float, nargs=2, metavar=("X", "Y"), help="encoder position in pixels")
    parser.add_argument("--position_level", type=int, default=0, help="feature level of the encoder position")
    parser.add_argument("--detections", type=int, default=3, help="how many of the best detections")
    parser.add_argument("--views", nargs="+", choices=QUERY_VIEWS, default=QUERY_VIEWS)
    options, rest = parser.parse_known_args(words)

    from lightning_xai.cli.checkpointed import configured_with_weights

    cli = configured_with_weights(rest, options.ckpt_path)
    task, module = cli.model, cli.datamodule
    raw, name = _validation_picture(module, options.index) if options.input is None else _file(options.input)
    images, mask = task.prepare(module.picture_batch(raw))
    folder = options.out or cli.run_dir / "attention" / name
    written = plot_attention(
        task.net,
        images,
        mask,
        raw.permute(1, 2, 0).contiguous().numpy(),
        folder,
        task.class_names or module.class_names or [],
        Selection(options.part, options.layer, options.head, options.level),
        queries=options.query,
        position=None if options.position is None else tuple(options.position),
        position_level=options.position_level,
        detections=options.detections,
        views=options.views,
        forward=task,
    )
    print(*written, sep="\n")
    return 0


def _file(path: Path) -> tuple[Tensor, str]:
    from lightning_xai.data.picture_file import decode_picture, read_bytes

    return decode_picture(read_bytes(path), path), path.stem


def _validation_picture(module: pl.LightningDataModule, index: int) -> tuple[Tensor, str]:
    module.setup("validate")
    if not 0 <= index < len(module.val_set):
        raise SystemExit(f"--index {index}: the validation data has the samples 0 to {len(module.val_set) - 1}")
    return module.val_set.load(index)[0], f"val_{index}"


def data(words: list[str]) -> int:
    """Training pictures with their boxes, as they are stored and as augmentation changes them, and where boxes lie."""
    parser = argparse.ArgumentParser("lightning-xai plot data", description=data.__doc__, epilog=CONFIGURED)
    parser.add_argument("--samples", type=int, default=4, help="how many training pictures")
    parser.add_argument("--epochs", type=int, default=2, help="how many epochs' augmentation of each")
    parser.add_argument("--out", type=Path, help="folder of the pictures (default: <run folder>/data)")
    options, rest = parser.parse_known_args(words)

    from lightning_xai.cli.training import TrainingCLI

    cli = TrainingCLI(rest, run=False)
    module = cli.datamodule
    module.cache_mode = False  # a few pictures do not need the whole set in memory
    module.setup("fit")
    train = module.train_set
    chosen = torch.linspace(0, len(train) - 1, min(options.samples, len(train))).long().tolist()
    rows = [
        [_labelled(train.load_readable(index), "stored")]
        + [_labelled(train[(epoch, index)], f"epoch {epoch}") for epoch in range(options.epochs)]
        for index in chosen
    ]
    folder = options.out or cli.run_dir / "data"
    write_picture(folder / "samples.png", draw_training_data(rows, module.class_names, "training data"))
    boxes, sizes = zip(*(train.boxes(index) for index in range(len(train))), strict=True)
    count = sum(map(len, boxes))
    density = box_density([box.numpy() for box in boxes], sizes)
    write_picture(folder / "box_density.png", draw_box_density(density, count, f"boxes of {len(boxes)} pictures"))
    print(folder / "samples.png", folder / "box_density.png", sep="\n")
    return 0


def _labelled(sample: tuple[Tensor, dict], caption: str) -> LabelledImage:
    image, target = sample
    picture = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return LabelledImage(picture, target["boxes"].numpy(), target["labels"].numpy(), caption)


def log(words: list[str]) -> int:
    """AP, AP50 and losses against the epoch, of one run or of several beside each other."""
    parser = argparse.ArgumentParser("lightning-xai plot log", description=log.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or log.jsonl / the original's log.txt")
    parser.add_argument("--fields", nargs="+", default=DEFAULT_FIELDS, help=f"default: {' '.join(DEFAULT_FIELDS)}")
    parser.add_argument("--smooth", type=float, default=0.0, help="centre of mass of exponential smoothing (0: none)")
    parser.add_argument("--out", type=Path, default=Path("training_log.png"))
    options = parser.parse_args(words)
    logs = {str(path): read_training_log(path) for path in options.runs}
    write_picture(options.out, draw_curves(logs, options.fields, options.smooth))
    print(options.out)
    return 0
