"""debugset: images that repair a classifier, picked from a pool, drawn from prompts, or chosen by what people say."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from lightning_xai.data.class_folders import classes_of, read_class_names
from lightning_xai.data.debugset import FILES, write_debugset
from lightning_xai.data.debugset_manifest import Entry, shortages
from lightning_xai.data.debugset_selection import SELECTIONS, ClassifiedImages, plan_failures, plan_selection

# How images are loaded, which their features do not depend on.
LOADING = ("batch_size", "eval_batch_size", "num_workers", "prefetch_factor", "max_bad_images")
GENERATION, FROM_PEOPLE = "lightning_xai.cli.debugset_generation", "lightning_xai.cli.debugset_people"
# word -> (what it does, module and function that run it)
WORDS = {
    "S-Random": ("pick images of the pool at random", __name__, "select"),
    "S-Similarity": ("pick those whose features are nearest to the class's mean failure", __name__, "select"),
    "S-Active-Learning": ("pick those of largest entropy", __name__, "select"),
    "G-LLM": ("draw 'a photo of a <class>'", GENERATION, "generate"),
    "G-TG": ("draw 'a photo of a <learned word of the class>'", GENERATION, "generate"),
    "G-LLM-prompt": ("draw 'a <class> with a <concept that a language model lists>'", GENERATION, "generate"),
    "G-TG-human-prompt": ("draw 'a <learned word> with a <concept that people name>'", GENERATION, "generate"),
    "export-prompts": ("write the prompts of a G- strategy, to be drawn on another machine", GENERATION, "export"),
    "import": ("make a debug set of exported prompts and the images drawn from them", GENERATION, "ingest"),
    "failures": ("gather the images that the classifier gets wrong, to be explained", __name__, "gather"),
    "concepts": ("find valid and confounded concepts in crowd tasks", FROM_PEOPLE, "concepts"),
    "difficulty": ("rate images by crowd tasks and leave the hardest out of a split", FROM_PEOPLE, "difficulty"),
}


def usage() -> str:
    width = max(map(len, WORDS))
    return "\n".join(
        [
            "usage: lightning-xai debugset STRATEGY [options]",
            "",
            "Build a debug set: a folder of images by class, and manifest.jsonl with where each comes from.",
            "",
            *(f"  {word:<{width}}  {what}" for word, (what, *_) in WORDS.items()),
            "",
            "`lightning-xai debugset STRATEGY --help` lists the options of one.",
        ]
    )


def run(command: str, words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    known = {word.lower(): word for word in WORDS}
    word = known.get(words[0].lower().replace("_", "-"))
    if word is None:
        print(f"lightning-xai debugset: no strategy {words[0]!r}; there are: {', '.join(WORDS)}", file=sys.stderr)
        return 2
    _, module, function = WORDS[word]
    return told(getattr(import_module(module), function), word, words[1:])


def told(function: Callable[[str, list[str]], int], word: str, words: list[str]) -> int:
    """Run a command; what is wrong with its input is one sentence."""
    try:
        return function(word, words)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"lightning-xai debugset {word}: {error}") from error


def select(strategy: str, words: list[str]) -> int:
    """S-Random, S-Similarity, S-Active-Learning."""
    needs = SELECTIONS[strategy]
    parser = _parser(strategy, needs.needs_predictions)
    parser.add_argument("--pool", type=Path, required=True, help="candidates: a folder of images for each class")
    if needs.needs_discovery:
        parser.add_argument("--discovery", type=Path, required=True, help="images by class, where failures are found")
    if not needs.needs_predictions:
        parser.add_argument("--class_names", help="file with a name a line, or a folder of classes (default: the pool)")
    parser.add_argument("--count", type=int, default=1000, help="images for each class (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    options, rest = parser.parse_known_args(words)
    discovery = getattr(options, "discovery", None)
    if needs.needs_predictions:
        if discovery is not None and discovery.resolve() == options.pool.resolve():
            raise ValueError(f"{options.pool} is both pool and discovery set; failures must come from other images.")
        judged, class_names = _judged([options.pool] + ([discovery] if discovery else []), options, rest)
        if judged is None:
            return 0
    else:
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        class_names = named_classes(options.class_names or str(options.pool))
        judged = [_unjudged(options.pool, class_names)]
    entries = plan_selection(strategy, judged[0], class_names, options.count, options.seed, *judged[1:])
    out = write_debugset(entries, options.out, class_names, files=options.files, overwrite=options.overwrite)
    report(entries, class_names, options.count, out)
    return 0


def gather(command: str, words: list[str]) -> int:
    """failures: the misclassified images of a discovery set, as a folder of each class."""
    parser = _parser(command, needs_predictions=True)
    parser.add_argument("--discovery", type=Path, required=True, help="images by class, where failures are found")
    options, rest = parser.parse_known_args(words)
    judged, class_names = _judged([options.discovery], options, rest)
    if judged is None:
        return 0
    entries = plan_failures(judged[0], class_names)
    if not entries:
        print(f"no failure among the {len(judged[0].paths)} images of {options.discovery}")
        return 0
    out = write_debugset(entries, options.out, class_names, files=options.files, overwrite=options.overwrite)
    print(f"{len(entries)} of {len(judged[0].paths)} images are misclassified: {out}")
    return 0


def _parser(word: str, needs_predictions: bool) -> argparse.ArgumentParser:
    """What all commands that look at folders of images take."""
    parser = argparse.ArgumentParser(
        f"lightning-xai debugset {word}",
        description=f"{WORDS[word][0][0].upper()}{WORDS[word][0][1:]}.",
        epilog="All other options are those of `predict`: --config FILE, --trainer.x, --model.x, --data.x."
        if needs_predictions
        else None,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to be written")
    parser.add_argument("--files", choices=FILES, default="copy", help="copy images or link to them")
    parser.add_argument("--overwrite", action="store_true", help="replace another such set in that folder")
    if needs_predictions:
        parser.add_argument("--ckpt_path", type=Path, help="the classifier's checkpoint (or --model.checkpoint FILE)")
        parser.add_argument("--features", type=Path, help="where features are kept (default: <run folder>/features)")
    return parser


def named_classes(given: str) -> list[str]:
    """Class names from a folder of class folders, or from a file with one a line."""
    return classes_of(Path(given)) if Path(given).is_dir() else read_class_names(given)


def _unjudged(folder: Path, class_names: list[str]) -> ClassifiedImages:
    from lightning_xai.data.image_folder import ImageFolder

    pictures = ImageFolder([folder], class_names, lambda *sample: sample[:2])
    return ClassifiedImages([str(path) for path in pictures.paths], pictures.labels)


def _judged(
    folders: Sequence[Path], options: argparse.Namespace, words: list[str]
) -> tuple[list[ClassifiedImages] | None, list[str]]:
    """Each folder's images as the classifier sees them (None on all processes but the first), and its class names."""
    import yaml

    from lightning_xai.cli.checkpointed import configured_with_weights
    from lightning_xai.cli.classified_images import classified_images
    from lightning_xai.data.image_folder import ImageFolder

    cli = configured_with_weights(words, options.ckpt_path)
    data = cli.datamodule
    for name in ("class_names", "evaluation_transform"):
        if getattr(data, name, None) is None:
            raise ValueError(f"the configured data {type(data).__name__} has no {name}; give data for classification.")
    given = cli.config.data.as_dict().get("init_args", {})
    described = yaml.safe_dump({name: value for name, value in given.items() if name not in LOADING})
    batch_size = getattr(data, "eval_batch_size", None) or data.batch_size
    judged = []
    for folder in folders:
        pictures = ImageFolder([folder], data.class_names, data.evaluation_transform, **getattr(data, "reading", {}))
        cache = options.features or cli.run_dir / "features"
        judged.append(
            classified_images(cli.model, cli.trainer, pictures, cache, described, batch_size, data.num_workers)
        )
    return (None if judged[0] is None else judged), list(data.class_names)


def report(entries: Sequence[Entry], class_names: Sequence[str], count: int, out: Path) -> None:
    """Say what a debug set holds, and for which classes it is not what was asked for."""
    notes = dict.fromkeys(f"{entry.class_name}: {entry.note}" for entry in entries if entry.note)
    for line in [*shortages(entries, class_names, count), *notes]:
        print(line, file=sys.stderr)
    print(f"{len(entries)} images of {len(class_names)} classes: {out}")
