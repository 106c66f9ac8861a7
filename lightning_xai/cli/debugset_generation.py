"""Debug sets drawn from prompts: here, or on another machine with `export-prompts` and `import`."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from lightning_xai.cli.debugset import named_classes, report
from lightning_xai.data.concept_listers import ConceptLister
from lightning_xai.data.concepts import read_concepts
from lightning_xai.data.debugset import write_debugset
from lightning_xai.data.debugset_manifest import Entry, manifest_text, read_entries
from lightning_xai.data.debugset_prompts import GENERATIONS, MissingProvider, plan_prompts
from lightning_xai.data.image_generators import FolderImages, ImageGenerator
from lightning_xai.data.token_learners import TokenLearner

# Where the offered providers live: their short names are known once these are imported.
PROVIDERS = ("lightning_xai.data.diffusion_models", "lightning_xai.data.embedded_generator")
MISSING_GENERATOR = (
    "{strategy} needs an image generator: give `--generator FolderImages --generator.folder DIR` (images made "
    "elsewhere; DIR/manifest.jsonl says in a JSON object a line which `prompt` and `seed` made which `path`) or "
    "`--generator DiffusersImages --generator.model DIR` (a local Stable Diffusion). Without one here, `lightning-xai "
    "debugset export-prompts {strategy}` writes the prompts for another machine and `lightning-xai debugset import` "
    "takes its images."
)


def generate(strategy: str, words: list[str]) -> int:
    """G-LLM, G-TG, G-LLM-prompt, G-TG-human-prompt."""
    parser = _parser(strategy)
    parser.add_argument("--generator", type=ImageGenerator, help="draws the images")
    parser.add_argument("--size", type=tuple[int, int] | None, help="[height, width] (default: the generator's own)")
    parser.add_argument("--batch_size", type=int, default=8, help="prompts that the generator gets at once")
    parser.add_argument("--overwrite", action="store_true", help="replace another debug set in that folder")
    options = parser.instantiate_classes(parser.parse_args(words))
    if options.generator is None:
        raise MissingProvider(MISSING_GENERATOR.format(strategy=strategy))
    class_names = named_classes(options.class_names)
    entries = _planned(strategy, options, class_names, options.generator.provider)
    out = write_debugset(
        entries,
        options.out,
        class_names,
        options.generator,
        batch_size=options.batch_size,
        size=options.size,
        overwrite=options.overwrite,
    )
    report(entries, class_names, options.count, out)
    return 0


def export(command: str, words: list[str]) -> int:
    """export-prompts: the lines of the manifest that the debug set will have, images still to be drawn."""
    strategies = {name.lower(): name for name in GENERATIONS}
    strategy = strategies.get(words[0].lower()) if words else None
    if strategy is None:
        given = repr(words[0]) if words else "nothing"
        raise ValueError(f"the strategy comes first, one of {', '.join(GENERATIONS)}; {given} was given.")
    options = _parser(strategy, f"export-prompts {strategy}", "file of the prompts, such as prompts.jsonl")
    options = options.instantiate_classes(options.parse_args(words[1:]))
    class_names = named_classes(options.class_names)
    entries = _planned(strategy, options, class_names, None)
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(manifest_text(entries), encoding="utf-8")
    print(
        f"{len(entries)} prompts: {options.out}\n"
        "Draw each line's `prompt` (and `negative_prompt`) with its `seed`, save the image under its `path` in a "
        "folder, then: lightning-xai debugset import --prompts FILE --images FOLDER --out DEBUGSET"
    )
    return 0


def ingest(command: str, words: list[str]) -> int:
    """import: exported prompts and the images drawn from them become a debug set."""
    parser = ArgumentParser(
        "lightning-xai debugset import",
        description="A debug set of exported prompts and the images that were drawn from them.",
    )
    parser.add_argument("--prompts", type=str, required=True, help="what export-prompts wrote")
    parser.add_argument("--images", type=str, required=True, help="folder with the images")
    parser.add_argument(
        "--index", type=str | None, help="which prompt and seed made which file (default: each line's own path)"
    )
    parser.add_argument("--out", type=str, required=True, help="folder of the debug set")
    parser.add_argument("--provider", type=str, default="import", help="what drew them, for the manifest")
    parser.add_argument("--skip_missing", action="store_true", help="leave out prompts without an image")
    parser.add_argument("--overwrite", action="store_true", help="replace another debug set in that folder")
    options = parser.parse_args(words)
    entries = read_entries(options.prompts)
    images = FolderImages(options.images, options.index or options.prompts)
    if options.skip_missing:
        found = [entry for entry in entries if images.has(entry.prompt, entry.seed)]
        print(f"{len(entries) - len(found)} of {len(entries)} prompts have no image.", file=sys.stderr)
        entries = found
    images.check([entry.prompt for entry in entries], [entry.seed for entry in entries])
    entries = [replace(entry, provider=_drawn_by(options.provider, entry)) for entry in entries]
    class_names = list(dict.fromkeys(entry.class_name for entry in entries))
    out = write_debugset(entries, options.out, class_names, images, overwrite=options.overwrite)
    print(f"{len(entries)} images of {len(class_names)} classes: {out}")
    return 0


def _drawn_by(provider: str, entry: Entry) -> str:
    return provider if entry.provider is None else f"{provider}; {entry.provider}"


def _parser(strategy: str, command: str | None = None, out: str = "folder of the debug set") -> ArgumentParser:
    for module in PROVIDERS:
        import_module(module)
    known = GENERATIONS[strategy]
    parser = ArgumentParser(f"lightning-xai debugset {command or strategy}")
    parser.add_argument("--config", action="config", help="file with these options")
    parser.add_argument(
        "--class_names", type=str, required=True, help="file with a name a line, or a folder of classes"
    )
    parser.add_argument("--out", type=str, required=True, help=out)
    parser.add_argument("--count", type=int, default=1000, help="images for each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--templates", type=list[str] | None, help="prompts with {subject} (and {concept})")
    if known.concepts == "listed":
        parser.add_argument("--lister", type=ConceptLister, help="lists concepts of a class")
    if known.concepts == "human":
        parser.add_argument("--concepts", type=str | None, help="JSON file with valid and confounded concepts")
        parser.add_argument(
            "--confounded", type=Literal["negative", "omit"], default="negative", help="negative prompt, or left out"
        )
    if known.concepts:
        parser.add_argument("--concepts_per_class", type=int, default=10)
    if known.learned_word:
        parser.add_argument("--learner", type=TokenLearner, help="learns a word for each class")
        parser.add_argument("--training_images", type=str | None, help="folder of classes that words are learned from")
    return parser


def _planned(strategy: str, options: Namespace, class_names: list[str], provider: str | None) -> list[Entry]:
    given: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("lister", "learner", "templates", "confounded", "concepts_per_class")
        if hasattr(options, name)
    }
    if getattr(options, "concepts", None):
        given["concepts"] = read_concepts(options.concepts)
        strange = sorted(given["concepts"].keys() - set(class_names))
        if strange:
            raise ValueError(f"{options.concepts}: {', '.join(strange)} are none of {', '.join(class_names)}.")
    if getattr(options, "training_images", None):
        given["training_images"] = _images_by_class(options.training_images, class_names)
    return plan_prompts(strategy, class_names, options.count, options.seed, provider=provider, **given)


def _images_by_class(folder: str, class_names: list[str]) -> dict[str, list[str]]:
    from lightning_xai.data.class_folders import pictures_in

    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"--training_images {folder}: no such folder; give one with a folder for each class.")
    return {
        name: [str(root / name / picture) for picture in pictures_in(root / name)]
        for name in class_names
        if (root / name).is_dir()
    }
