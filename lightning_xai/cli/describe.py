"""describe: a sentence about the regions that a network looked at, or that a person chose."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_xai.callbacks.caption_views import draw_sample as draw_caption
from lightning_xai.callbacks.pictures import write_picture
from lightning_xai.cli.explain import read_picture, validation_set
from lightning_xai.cli.explained_regions import explained_regions
from lightning_xai.cli.method_option import methods_of_options
from lightning_xai.cli.our_sentence import our_sentence
from lightning_xai.data.abstract_graph import AbstractGraph
from lightning_xai.data.region_graph import region_graph
from lightning_xai.data.scene_graph_files import parse_region, read_regions, region_json
from lightning_xai.explain.explain_batch import methods_by_name

OF_CAPTIONER = "--captioner."


def run(command: str, words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "lightning-xai describe",
        description="Caption what a network looked at: its explanation's regions become an abstract scene graph, "
        "which a captioner puts into words. With --graph instead of --config the graph is a person's.",
        epilog="Options --config FILE, --model.x, --data.x are of the network that is explained; those of the "
        "captioner are written --captioner.model.x, --captioner.data.x.",
        allow_abbrev=False,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", "--input", type=Path, metavar="FILE", help="a picture file")
    source.add_argument("--index", type=int, help="a picture of the explained network's validation data instead")
    parser.add_argument("--captioner", type=Path, required=True, metavar="FILE", help="the captioner's configuration")
    parser.add_argument(
        "--captioner_ckpt", type=Path, metavar="FILE", help="its checkpoint (or --captioner.model.checkpoint FILE)"
    )
    parser.add_argument("--ckpt", "--ckpt_path", type=Path, help="checkpoint of the network that is explained")
    parser.add_argument("--method", default="generic_relevance", metavar="NAME[:OPTION=VALUE,...]")
    parser.add_argument("--target", default="predicted", help="what is explained, as in `lightning-xai explain`")
    parser.add_argument("--text", action="append", metavar="TEXT", help="what is said of the picture (repeatable)")
    parser.add_argument("--regions", type=int, default=3, help="at most so many regions (default: 3)")
    parser.add_argument(
        "--regions_from",
        choices=("relevance", "boxes"),
        default="relevance",
        help="where the explanation is most relevant (default), or the boxes that a detector found",
    )
    parser.add_argument(
        "--attributes", default="1", metavar="N[,N...]", help="how many to say of each region, or one number for all"
    )
    parser.add_argument("--relations", type=int, help="how many to say, each of a region to the next (default: 1 or 0)")
    parser.add_argument(
        "--graph", type=Path, metavar="FILE", help="a scene graph of the picture to be captioned, in region JSON"
    )
    parser.add_argument("--region", metavar="ID", help="which one of the graphs in that file (default: the only one)")
    parser.add_argument("--out", type=Path, help="the files without ending (default: <run folder>/descriptions/NAME)")
    options, rest = parser.parse_known_args(words)
    own, of_captioner = divided(rest)
    try:
        _check(options, own)
        return describe(options, own, ["--config", str(options.captioner), *of_captioner])
    except (KeyError, IndexError):  # nothing that a user gave: a mistake of ours, to be seen where it is
        raise
    except (ValueError, LookupError, TypeError, NotImplementedError, OSError) as error:
        sentence = our_sentence(error)
        if sentence is None:
            raise
        raise SystemExit(f"lightning-xai describe: {sentence}") from error


def divided(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of the network that is explained, and those written --captioner.x, without that beginning."""
    own, of_captioner, rest = [], [], iter(words)
    for word in rest:
        if not word.startswith(OF_CAPTIONER):
            own.append(word)
            continue
        of_captioner.append(f"--{word.removeprefix(OF_CAPTIONER)}")
        if "=" not in word:
            of_captioner += [value for value in [next(rest, None)] if value is not None]
    return own, of_captioner


def _check(options: argparse.Namespace, own: Sequence[str]) -> None:
    """What needs no weights is found wrong before they are read."""
    if options.graph is None and not own:
        raise ValueError("what shall be described? --config FILE is a network to explain, --graph FILE a scene graph")
    if options.graph is not None and (own or options.ckpt or options.text):
        raise ValueError(f"--graph {options.graph} is captioned as it is: leave out the network that is explained")
    if options.graph is not None and options.image is None:
        raise ValueError(f"--graph {options.graph} goes with the picture that it was drawn on: give --image FILE")
    if options.region is not None and options.graph is None:
        raise ValueError(f"--region {options.region!r} is one of the graphs of --graph FILE, which is not given")
    if options.regions < 1:
        raise ValueError(f"--regions {options.regions} must be at least 1")
    if options.relations is not None and options.relations < 0:
        raise ValueError(f"--relations {options.relations} must be at least 0")
    asked = options.attributes.count(",") + 1
    if asked > max(options.regions, 1):
        raise ValueError(f"--attributes {options.attributes!r} is for {asked} regions, but --regions {options.regions}")
    attributes_of(options.attributes, options.regions)


def attributes_of(text: str, regions: int) -> list[int]:
    """How many attributes are asked for of each of the regions: "2" for all alike, or "2,0,1"."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--attributes {text!r} must be a number such as 1, or one for each region such as 2,0,1")
    numbers = [int(part) for part in parts]
    if len(numbers) == 1:
        return numbers * regions
    return (numbers + [0] * regions)[:regions]


def describe(options: argparse.Namespace, own: list[str], of_captioner: list[str]) -> int:
    """Find or read the graph, caption it, and write sentences, graph and picture."""
    from lightning_xai.cli.checkpointed import configured_with_weights

    ((name, method),) = methods_by_name(methods_of_options([options.method])).items()
    picture = None if options.image is None else read_picture(options.image)
    title = f"val_{options.index}" if options.image is None else options.image.stem
    explained = None
    if options.graph is not None:
        graph = graph_of_file(options.graph, options.region)
    else:
        cli = configured_with_weights(own, options.ckpt)
        if picture is None:
            picture = validation_set(cli.datamodule, options.index).load(options.index)[0]
        wanted = options.target, options.regions, options.text, options.regions_from == "boxes", title
        explained = explained_regions(cli, picture, (name, method), *wanted)
        count = len(explained.boxes)  # there may be fewer than were asked for
        relations = min(count - 1, 1 if options.relations is None else options.relations)
        attributes = attributes_of(options.attributes, count)
        graph = region_graph(explained.names, explained.boxes, attributes, relations, tuple(picture.shape[1:]))
    captioner = configured_with_weights(of_captioner, options.captioner_ckpt)
    task, module = captioner.model, captioner.datamodule
    if not hasattr(task, "captions") or not hasattr(module, "graph_batch"):
        raise TypeError(
            f"--captioner {options.captioner} configures {type(task).__name__} with {type(module).__name__}, but a "
            "captioner of scene graphs is CaptioningTask with a module of scene graphs"
        )
    task.use_vocabulary(module.vocabulary)
    batch = module.graph_batch(picture, graph)
    device = captioner.trainer.strategy.root_device
    task.to(device)
    tensors = captioner.trainer.strategy.batch_to_device(batch["graph"], device)
    with torch.inference_mode():
        sentences = task.captions(tensors)[0]
        said = attended(task, tensors, sentences[0].text)
    shown = [draw_caption(module, batch, said, 0, picture.permute(1, 2, 0).numpy())]
    for line in () if explained is None else explained.said:
        print(line)
    if left_out := batch["nodes"][0].left_out:
        print(f"the graph has {left_out} nodes more than the {module.max_nodes} that the captioner reads")
    print(*(f"{sentence.text}  ({sentence.score:.2f})" for sentence in sentences), sep="\n")
    run_dir = captioner.run_dir if explained is None else cli.run_dir
    out = options.out or run_dir / "descriptions" / title
    if out.suffix in (".png", ".json"):
        out = out.with_suffix("")
    picture_file, graph_file, seen_file = (out.with_name(out.name + end) for end in (".png", ".json", ".input.png"))
    if options.image is None:  # so that the graph can be changed and captioned again
        write_picture(seen_file, np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))
    write_picture(picture_file, stacked(shown if explained is None else [explained.sheet, *shown]))
    write_graph(graph_file, replace(graph, phrase=sentences[0].text), [list(sentence) for sentence in sentences])
    print(picture_file, graph_file, sep="\n")
    return 0


def attended(task: Any, graph: dict[str, torch.Tensor], text: str) -> dict[str, torch.Tensor]:
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
    regions = read_regions(file)
    if "objects" in regions:  # a graph by itself
        regions = {region or "": regions}
    if region is None and len(regions) != 1:
        raise ValueError(f"{file} holds {len(regions)} graphs: choose one by --region, of {', '.join(regions)}")
    if region is not None and region not in regions:
        raise ValueError(f"{file} has no region {region!r}; there are: {', '.join(regions)}")
    try:
        return parse_region(regions[next(iter(regions)) if region is None else region], inclusive=False)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
