"""The work of `lightning-xai describe`: find or read a graph of a picture, and let a captioner say it."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_xai.callbacks.caption_views import draw_sample as draw_caption
from lightning_xai.callbacks.pictures import write_picture
from lightning_xai.cli.checkpointed import configured_with_weights
from lightning_xai.cli.describe import OF_CAPTIONER, attributes_of
from lightning_xai.cli.explain import read_picture, validation_set
from lightning_xai.cli.explained_regions import ExplainedRegions, explained_regions
from lightning_xai.cli.method_option import methods_of_options
from lightning_xai.cli.training import TrainingCLI
from lightning_xai.data.abstract_graph import AbstractGraph
from lightning_xai.data.region_graph import region_graph
from lightning_xai.data.scene_graph_files import parse_region, read_regions, region_json
from lightning_xai.explain.explain_batch import methods_by_name
from lightning_xai.explain.explainable import explainable_task


def describe(options: argparse.Namespace, own: list[str], of_captioner: list[str]) -> int:
    """Find or read the graph, caption it, and write sentences, graph and picture."""
    ((name, method),) = methods_by_name(methods_of_options([options.method])).items()
    picture = None if options.image is None else read_picture(options.image)
    graph = None if options.graph is None else graph_of_file(options.graph, options.region)
    cli = None
    if graph is None:
        cli = configured_with_weights([*(w for file in options.config for w in ("--config", file)), *own], options.ckpt)
        explainable_task(cli.model)
    captioner = configured_captioner(options.captioner, of_captioner, options.captioner_ckpt)
    title = f"val_{options.index}" if options.image is None else (options.graph or options.image).stem
    out = _out(options.out, (cli or captioner).run_dir / "descriptions", title)
    files = picture_file, graph_file, seen_file = [out.with_name(out.name + e) for e in (".png", ".json", ".input.png")]
    for given in (options.image, options.graph):
        if given is not None and given.resolve() in [file.resolve() for file in files]:
            raise ValueError(f"{given} is read and would be written over: give another place by --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    explained = None
    if graph is None:
        if picture is None:
            picture = validation_set(cli.datamodule, options.index).load(options.index)[0]
            # so that the graph can be changed and captioned again
            write_picture(seen_file, np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))
        explained = explained_regions(
            cli,
            picture,
            (name, method),
            options.target,
            options.regions,
            options.text,
            options.regions_from == "boxes",
            title,
            options.index,
        )
        print(*explained.said, sep="\n")
        graph = graph_of_regions(explained, options.attributes, options.relations, tuple(picture.shape[1:]))
        # found at some cost, and not lost if the captioner cannot say it
        write_picture(picture_file, explained.sheet)
        write_graph(graph_file, graph, [])
    sentences, shown = caption(captioner, picture, graph)
    write_picture(picture_file, shown if explained is None else stacked([explained.sheet, shown]))
    write_graph(graph_file, replace(graph, phrase=sentences[0].text), [list(sentence) for sentence in sentences])
    print(*(f"{sentence.text}  ({sentence.score:.2f})" for sentence in sentences), sep="\n")
    print(picture_file, graph_file, sep="\n")
    return 0


def configured_captioner(file: Path, words: list[str], checkpoint: Path | None) -> TrainingCLI:
    """The captioner of a configuration with its weights, which reads new pictures.

    Raises TypeError for something else; what is wrong with its options is said as they are written here.
    """
    try:
        captioner = configured_with_weights(words, checkpoint)
    except SystemExit as error:
        if isinstance(error.code, str):
            raise SystemExit(f"lightning-xai describe: {as_of_captioner(error.code)}") from error
        raise
    task, module = captioner.model, captioner.datamodule
    if not hasattr(task, "captions") or not hasattr(module, "graph_batch"):
        raise TypeError(
            f"--captioner {file} configures {type(task).__name__} with {type(module).__name__}, but a "
            "captioner of scene graphs is CaptioningTask with a module of scene graphs"
        )
    if module.new_pictures is None:
        raise TypeError(
            f"--captioner {file}: {type(module).__name__} only has features of its own pictures; give "
            f"{OF_CAPTIONER}data.new_pictures, such as lightning_xai.data.torchvision_features.TorchvisionFeatures, "
            f"with the weights that its features were computed with ({OF_CAPTIONER}data.new_pictures.image_weights "
            f"FILE {OF_CAPTIONER}data.new_pictures.box_weights FILE)"
        )
    task.use_vocabulary(module.vocabulary)
    task.to(captioner.trainer.strategy.root_device)
    return captioner


def as_of_captioner(sentence: str) -> str:
    """A sentence about the options of a network, which are the captioner's: as they are written for `describe`."""
    sentence = sentence.removeprefix("lightning-xai: ").replace("--ckpt_path", "--captioner_ckpt")
    for key in ("model", "data", "trainer"):
        sentence = sentence.replace(f"--{key}.", f"{OF_CAPTIONER}{key}.")
    return f"the captioner: {sentence.replace('--config ', '--captioner ')}"


def graph_of_regions(
    explained: ExplainedRegions, attributes: str, relations: int | None, size: tuple[int, int]
) -> AbstractGraph:
    """The graph of what an explanation found in a picture of `size` (h, w), of which there may be less than asked."""
    count = len(explained.boxes)
    most = min(count - 1, 1 if relations is None else relations)
    if relations is not None and most < relations:
        print(f"{most} instead of {relations} relations: regions found: {count}")
    return region_graph(explained.names, explained.boxes, attributes_of(attributes, count), most, size)


def caption(captioner: TrainingCLI, picture: Tensor, graph: AbstractGraph) -> tuple[list[Any], np.ndarray]:
    """What a captioner says of a graph on a picture, best first, and what the best attends to as uint8 (h, w, 3)."""
    task, module = captioner.model, captioner.datamodule
    batch = module.graph_batch(picture, graph)
    tensors = captioner.trainer.strategy.batch_to_device(batch["graph"], captioner.trainer.strategy.root_device)
    with torch.inference_mode():
        sentences = task.captions(tensors)[0]
        said = attended(task, tensors, sentences[0].text)
    if left_out := batch["nodes"][0].left_out:
        print(f"the graph has {left_out} nodes more than the {module.max_nodes} that the captioner reads")
    return sentences, draw_caption(module, batch, said, 0, picture.permute(1, 2, 0).numpy())


def attended(task: Any, graph: dict[str, Tensor], text: str) -> dict[str, Tensor]:
    """What `ASGCaptioner.greedy` gives of its own words, of any sentence about one graph."""
    numbers = task.vocabulary.encode(text, len(text.split()) + 2)
    captions = torch.tensor([numbers], device=graph["attn_masks"].device)
    said = task.net(graph, captions)
    return {name: values for name, values in said.items() if name != "logits"} | {"words": captions[:, 1:]}


def stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures uint8 (h, w, 3) below each other, white beside the narrower ones."""
    width = max(picture.shape[1] for picture in pictures)
    rows = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(rows)


def write_graph(file: Path, graph: AbstractGraph, sentences: list[list[Any]]) -> None:
    """The graph in region JSON, its best caption as phrase, with all sentences, their scores and those of their words.

    `--graph` reads it again, so that a person may change what shall be said; so does a folder of region files.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    content = {"0": {**region_json(graph, inclusive=False), "captions": sentences}}
    unfinished.write_text(json.dumps(content, indent=2), encoding="utf-8")
    unfinished.replace(file)


def graph_of_file(file: Path, region: str | None) -> AbstractGraph:
    """The graph in a file of region JSON: the one called `region`, or the only one."""
    if not file.is_file():
        raise FileNotFoundError(f"--graph {file}: no such file; give a scene graph in region JSON")
    regions = read_regions(file)
    if "objects" in regions:  # a graph by itself
        regions = {region or "": regions}
    if not regions:
        raise ValueError(f"{file} holds no graph")
    if region is None and len(regions) != 1:
        raise ValueError(f"{file} holds {len(regions)} graphs: choose one by --region, of {', '.join(regions)}")
    if region is not None and region not in regions:
        raise ValueError(f"{file} has no region {region!r}; there are: {', '.join(regions)}")
    try:
        return parse_region(regions[next(iter(regions)) if region is None else region], inclusive=False)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _out(given: Path | None, folder: Path, name: str) -> Path:
    """Where the files shall be, without their endings."""
    if given is None or given.is_dir():
        return (given or folder) / name
    return given.with_suffix("") if given.suffix in (".png", ".json") else given
