"""explain: why a network says what it says of one picture, as a figure and as numbers."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_xai.callbacks.explanation_pictures import draw_sample, map_streams, shown_picture, word_streams
from lightning_xai.callbacks.pictures import write_picture
from lightning_xai.cli.method_option import methods_of_options
from lightning_xai.explain.explain_batch import BatchExplanations, explain_batch, methods_by_name
from lightning_xai.explain.explainable import explainable_task
from lightning_xai.explain.method import Method
from lightning_xai.explain.methods import METHODS

if TYPE_CHECKING:
    from lightning_xai.cli.training import TrainingCLI

DEFAULT_METHODS = ("generic_relevance",)


def run(command: str, words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "lightning-xai explain",
        description="Why a network says what it says of one picture: a figure, and the relevances as .npz.",
        epilog="All other options are those of `fit`: --config FILE, --model.x, --data.x, --trainer.x.",
        allow_abbrev=False,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, metavar="FILE", help="a picture file")
    source.add_argument("--index", type=int, help="a sample of the validation data instead of a file")
    parser.add_argument(
        "--ckpt", "--ckpt_path", type=Path, help="checkpoint of this project (or give --model.checkpoint FILE)"
    )
    parser.add_argument("--text", action="append", metavar="TEXT", help="what is said of the picture (repeatable)")
    parser.add_argument(
        "--method",
        action="append",
        metavar="NAME[:OPTION=VALUE,...]",
        help=f"repeatable; default {', '.join(DEFAULT_METHODS)}; there are {', '.join(METHODS)}",
    )
    parser.add_argument(
        "--target",
        default="predicted",
        help="predicted (default), truth (with --index), kept, class:NAME|INDEX, query:Q or query:Q:CLASS",
    )
    parser.add_argument("--limit", type=int, default=3, help="at most so many targets (default: 3)")
    parser.add_argument("--out", type=Path, help="the files without ending (default: <run folder>/explanations/NAME)")
    options, rest = parser.parse_known_args(words)

    from lightning_xai.cli.checkpointed import configured_with_weights

    try:  # what needs no weights is found wrong before they are read
        methods = methods_by_name(methods_of_options(options.method or DEFAULT_METHODS))
        if options.limit < 1:
            raise ValueError(f"--limit {options.limit} must be at least 1")
        picture = None if options.input is None else read_picture(options.input)
    except ValueError as error:
        raise SystemExit(f"lightning-xai explain: {error}") from error
    cli = configured_with_weights(rest, options.ckpt)
    try:
        task, module = explainable_task(cli.model), cli.datamodule
        if picture is None:
            batch, name = validation_batch(module, options.index, options.text), f"val_{options.index}"
        else:
            batch, name = picture_batch(module, picture, options.text), options.input.stem
        batch, found = explained_batch(cli, task, batch, methods, options.target, options.limit)
    except (KeyError, IndexError):  # nothing that a user gave: a mistake of ours, to be seen where it is
        raise
    except (ValueError, LookupError, TypeError, NotImplementedError) as error:
        raise SystemExit(f"lightning-xai explain: {error.args[0] if error.args else error}") from error
    out = options.out or cli.run_dir / "explanations" / name
    if out.suffix in (".png", ".npz"):
        out = out.with_suffix("")
    pictures = [draw_sample(task, batch, found, sample, name) for sample in range(len(batch["images"]))]
    write_picture(out.with_name(out.name + ".png"), np.concatenate(pictures))
    write_relevances(out.with_name(out.name + ".npz"), batch, found)
    print(*(f"{name}" for name in found.explained.names), sep="\n")
    print(out.with_name(out.name + ".png"), out.with_name(out.name + ".npz"), sep="\n")
    return 0


def explained_batch(
    cli: "TrainingCLI",
    task: Any,
    batch: dict[str, Any],
    methods: Mapping[str, Method],
    choice: str,
    limit: int,
) -> tuple[dict[str, Any], BatchExplanations]:
    """A batch on the device of a configured trainer, and its explanations; LookupError where nothing is explained."""
    if getattr(task, "class_names", None) is None:
        task.class_names = getattr(cli.datamodule, "class_names", None)
    device = cli.trainer.strategy.root_device
    task.to(device)
    with torch.inference_mode():
        batch = task.transfer_batch_to_device(batch, device, 0)
        found = explain_batch(task, batch, methods, choice, limit)
    if found.explained is None:
        raise LookupError(f"{found.without}; choose otherwise by --target, such as class:NAME or query:Q")
    return batch, found


def read_picture(path: Path) -> Tensor:
    """A picture's file as uint8 (3, h, w)."""
    from lightning_xai.data.picture_file import decode_picture, read_bytes

    return decode_picture(read_bytes(path), path)


def picture_batch(module: pl.LightningDataModule | None, picture: Tensor, texts: list[str] | None) -> dict[str, Any]:
    """The batch of one picture as a data module evaluates it, with what is said of it where the task reads texts."""
    if not hasattr(module, "picture_batch"):
        raise TypeError(
            f"{type(module).__name__} does not say how a picture is prepared: configure a data module with "
            "picture_batch(picture), or take a sample of its validation data by --index"
        )
    reads_text = getattr(module, "reads_text", False)
    if reads_text != bool(texts):
        said = "reads pictures with a text: give --text" if reads_text else "reads no text: leave --text out"
        raise ValueError(f"this task {said}")
    return module.picture_batch(picture, texts) if reads_text else module.picture_batch(picture)


def validation_batch(module: pl.LightningDataModule | None, index: int, texts: list[str] | None) -> dict[str, Any]:
    """The batch of one sample of a module's validation data; it brings its own text where the task reads one."""
    if texts:
        raise ValueError("--text goes with --input, not with --index")
    return module.collate([validation_set(module, index)[index]])


def validation_set(module: pl.LightningDataModule | None, index: int) -> Any:
    """The validation data of a module, which has a sample `index`; ValueError where it has not."""
    if module is None:
        raise ValueError(f"--index {index}: there is no data")
    module.setup("validate")
    count = len(module.val_set)
    if not 0 <= index < count:
        raise ValueError(f"--index {index}: the validation data has the samples 0 to {count - 1}")
    return module.val_set


def write_relevances(file: Path, batch: Mapping[str, Any], found: BatchExplanations) -> None:
    """Everything that was found, as arrays that np.load(file, allow_pickle=False) reads.

    names, classes, scores, samples, and boxes where there are any: of the T targets. images: uint8 (B, h, w, 3), what
    the network saw. METHOD/STREAM/relevance: (T, N); for streams on the picture METHOD/STREAM/map: (T, h', w'), and
    METHOD/STREAM/pixels: (T, h, w) of methods that explain pixels; for texts METHOD/STREAM/pieces: (T, N), empty where
    a text is shorter. methods, streams: the names.
    """
    explained = found.explained
    arrays: dict[str, np.ndarray] = {
        "methods": np.array(list(found.by_method)),
        "streams": np.array(list(dict.fromkeys(s for each in found.by_method.values() for s in each.relevance))),
        "names": np.array(explained.names),
        "classes": explained.classes.cpu().numpy(),
        "samples": explained.targets.samples.cpu().numpy(),
        "scores": explained.targets.scores.float().cpu().numpy(),
        "images": np.stack([shown_picture(batch, sample) for sample in range(len(batch["images"]))]),
    }
    if explained.boxes is not None:
        arrays["boxes"] = explained.boxes.detach().float().cpu().numpy()
    for method, explanation in found.by_method.items():
        for stream, relevance in explanation.relevance.items():
            arrays[f"{method}/{stream}/relevance"] = relevance.cpu().numpy()
        for stream in map_streams(explanation):
            arrays[f"{method}/{stream}/map"] = explanation.grid(stream).cpu().numpy()
        for stream, pixels in explanation.pixels.items():
            arrays[f"{method}/{stream}/pixels"] = pixels.cpu().numpy()
        for stream in word_streams(explanation):
            pieces = [[piece for piece, _ in explanation.words(t, stream)] for t in range(len(explained.names))]
            longest = max(map(len, pieces))
            arrays[f"{method}/{stream}/pieces"] = np.array([row + [""] * (longest - len(row)) for row in pieces])
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    with unfinished.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    unfinished.replace(file)
