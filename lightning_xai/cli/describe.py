"""describe: a sentence about the regions that a network looked at, or that a person chose."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OF_CAPTIONER = "--captioner."
# what an explanation is asked for; none of it has a meaning for a person's graph
OF_EXPLANATION: dict[str, Any] = {
    "method": "generic_relevance",
    "target": "predicted",
    "text": None,
    "regions": 3,
    "regions_from": "relevance",
    "attributes": "1",
    "relations": None,
}
USAGE = """lightning-xai describe --config FILE --ckpt FILE (--image FILE | --index N)
                              --captioner FILE --captioner_ckpt FILE [OPTION ...]
       lightning-xai describe --graph FILE --image FILE
                              --captioner FILE --captioner_ckpt FILE [OPTION ...]"""


def run(command: str, words: list[str]) -> int:
    options, rest = _parser().parse_known_args(words)
    own, of_captioner = divided(rest)
    try:
        _check(options, own)
        vars(options).update({name: usual for name, usual in OF_EXPLANATION.items() if getattr(options, name) is None})
        from lightning_xai.cli.description import describe

        return describe(options, own, ["--config", str(options.captioner), *of_captioner])
    except (KeyError, IndexError):  # nothing that a user gave: a mistake of ours, to be seen where it is
        raise
    except (ValueError, LookupError, TypeError, NotImplementedError, OSError) as error:
        from lightning_xai.cli.our_sentence import our_sentence

        sentence = our_sentence(error)
        if sentence is None and isinstance(error, OSError) and error.filename is not None:
            sentence = f"{error.filename}: {error.strerror}"
        if sentence is None:
            raise
        raise SystemExit(f"lightning-xai describe: {sentence}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-xai describe",
        usage=USAGE,
        description="Caption what a network looked at: its explanation's regions become an abstract scene graph, "
        "which a captioner puts into words. With --graph instead of --config the graph is a person's. Written are "
        "the graph with its sentences (.json) and a picture of which node each word attends to (.png).",
        epilog="All options of `fit` may follow: --model.x, --data.x and --run_dir are of the network that is "
        "explained, --captioner.model.x, --captioner.data.x and --captioner.run_dir of the captioner.",
        allow_abbrev=False,
    )
    shown = parser.add_argument_group("the picture")
    source = shown.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", "--input", type=Path, metavar="FILE", help="a picture file")
    source.add_argument("--index", type=int, metavar="N", help="one of the explained network's validation data instead")
    say = parser.add_argument_group("the captioner")
    say.add_argument("--captioner", type=Path, required=True, metavar="FILE", help="its configuration")
    say.add_argument(
        "--captioner_ckpt", type=Path, metavar="FILE", help="its checkpoint (or --captioner.model.checkpoint FILE)"
    )
    why = parser.add_argument_group("what is explained")
    why.add_argument("--config", action="append", metavar="FILE", help="configuration of the network")
    why.add_argument(
        "--ckpt", "--ckpt_path", type=Path, metavar="FILE", help="its checkpoint (or --model.checkpoint FILE)"
    )
    why.add_argument(
        "--method",
        metavar="NAME[:OPTION=VALUE,...]",
        help="explanation method, as in `lightning-xai explain` (default: generic_relevance)",
    )
    why.add_argument(
        "--target",
        help="predicted (default), truth (with --index), kept, class:NAME|INDEX, query:Q or query:Q:CLASS",
    )
    why.add_argument(
        "--text",
        action="append",
        metavar="TEXT",
        help="what is said of the picture, if the network reads it (repeatable)",
    )
    ask = parser.add_argument_group("the graph that is made of it")
    ask.add_argument("--regions", type=int, metavar="N", help="at most so many regions (default: 3)")
    ask.add_argument(
        "--regions_from",
        choices=("relevance", "boxes"),
        help="where the explanation is most relevant (default), or the boxes that a detector found",
    )
    ask.add_argument(
        "--attributes",
        metavar="N[,N...]",
        help="how many to say of each region, or one number for all (default: 1)",
    )
    ask.add_argument(
        "--relations",
        type=int,
        metavar="N",
        help="how many to say, each of a region to the next (default: 1 where there are two regions)",
    )
    given = parser.add_argument_group("or a graph of yours")
    given.add_argument("--graph", type=Path, metavar="FILE", help="in region JSON, as this command writes it")
    given.add_argument("--region", metavar="ID", help="which one of the graphs in that file (default: the only one)")
    parser.add_argument(
        "--out", type=Path, help="the files without ending, or a folder (default: <run folder>/descriptions/NAME)"
    )
    return parser


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
    if options.region is not None and options.graph is None:
        raise ValueError(f"--region {options.region!r} is one of the graphs of --graph FILE, which is not given")
    if options.graph is not None:
        _check_graph(options, own)
        return
    if options.config is None:
        raise ValueError("what shall be described? --config FILE is a network to explain, --graph FILE a scene graph")
    regions = OF_EXPLANATION["regions"] if options.regions is None else options.regions
    if regions < 1:
        raise ValueError(f"--regions {regions} must be at least 1")
    if options.relations is not None and not 0 <= options.relations < regions:
        raise ValueError(
            f"--relations {options.relations} must be at least 0 and at most {regions - 1}: each is of one of "
            f"{regions} regions to the next (--regions)"
        )
    attributes = OF_EXPLANATION["attributes"] if options.attributes is None else options.attributes
    asked = attributes.count(",") + 1
    if asked > regions:
        raise ValueError(f"--attributes {attributes!r} is for {asked} regions, but --regions {regions}")
    attributes_of(attributes, regions)


def _check_graph(options: argparse.Namespace, own: Sequence[str]) -> None:
    as_it_is = f"--graph {options.graph} is captioned as it is: leave out"
    if options.config or options.ckpt:
        raise ValueError(f"{as_it_is} the network that is explained")
    asked = [f"--{name}" for name in OF_EXPLANATION if getattr(options, name) is not None]
    if own or asked:
        raise ValueError(f"{as_it_is} {', '.join([*asked, *own])}")
    if options.image is None:
        raise ValueError(f"--graph {options.graph} goes with the picture that it was drawn on: give --image FILE")


def attributes_of(text: str, regions: int) -> list[int]:
    """How many attributes are asked for of each of the regions: "2" for all alike, or "2,0,1"."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--attributes {text!r} must be a number such as 1, or one for each region such as 2,0,1")
    numbers = [int(part) for part in parts]
    if len(numbers) == 1:
        return numbers * regions
    return (numbers + [0] * regions)[:regions]
