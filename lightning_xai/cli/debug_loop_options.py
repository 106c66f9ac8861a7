"""What the debug loop does, as files and the command line say it."""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from lightning_xai.cli.configuration import config_files
from lightning_xai.cli.debugset_generation import PROVIDERS
from lightning_xai.data.concept_listers import ConceptLister
from lightning_xai.data.debugset_prompts import GENERATIONS
from lightning_xai.data.debugset_selection import SELECTIONS
from lightning_xai.data.image_generators import ImageGenerator
from lightning_xai.data.token_learners import TokenLearner


@dataclass
class DebugLoop:
    """What the loop does; `classifier` and `concepts` are relative to the folder of the (last) --config file.

    Args:
        classifier: the `fit` configuration of the classifier; its data has a root with all folders below.
        repair: what differs from it when the trained classifier is fine-tuned on a debug set (trainer, model, data).
        checkpoint: a classifier that was trained elsewhere, instead of training it, one for all seeds.
        strategies: how debug sets are built, see `lightning-xai debugset`.
        count: images of a debug set for each class.
        mode: fine-tune on training and debug set ("augment") or on the debug set alone ("debug_only").
        seeds: everything is repeated with each.
        method: the explanation method, with options where it needs some, e.g. {generic_relevance: {}}.
        test: folder of images like those of training; what breaks is counted on it.
        heldout: folder of images on which repair is measured; no debug set takes any from it.
        discovery: folder of images on which failures are looked for.
        pool: folder of candidates for a debug set.
        generator: draws the images of G- strategies.
        lister: lists concepts for G-LLM-prompt.
        learner: learns words for G-TG and G-TG-human-prompt.
        concepts: file of human concepts for G-TG-human-prompt; without it the embedded world's people are asked.
        pictures: how many failures are shown in the figure of maps.
        debug_pictures: how many images of each debug set are explained before and after, for the first seed.
        run_dir: folder of the run.
    """

    classifier: str
    repair: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    strategies: list[str] = field(default_factory=lambda: [*SELECTIONS, *GENERATIONS])
    count: int = 100
    mode: Literal["augment", "debug_only"] = "augment"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    method: dict[str, dict[str, Any] | None] = field(default_factory=lambda: {"generic_relevance": None})
    test: str = "test"
    heldout: str = "heldout"
    discovery: str = "discovery"
    pool: str = "pool"
    generator: ImageGenerator | None = None
    lister: ConceptLister | None = None
    learner: TokenLearner | None = None
    concepts: str | None = None
    pictures: int = 6
    debug_pictures: int = 2
    run_dir: str = "runs/debug_loop"

    def __post_init__(self) -> None:
        known = {name.lower(): name for name in (*SELECTIONS, *GENERATIONS)}
        unknown = [name for name in self.strategies if name.lower() not in known]
        if unknown or not self.strategies:
            raise ValueError(f"strategies are one or more of {', '.join(known.values())}, but not {unknown}")
        self.strategies = list(dict.fromkeys(known[name.lower()] for name in self.strategies))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} should be one or more different numbers")
        if len(self.method) != 1:
            raise ValueError(f"method should name one explanation method, but has {list(self.method)}")
        for name, least in (("count", 1), ("pictures", 1), ("debug_pictures", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} should be at least {least}")


def parsed(words: list[str]) -> tuple[DebugLoop, Path]:
    """The options, and the folder that their paths are relative to."""
    for module in PROVIDERS:
        import_module(module)
    parser = ArgumentParser(
        "lightning-xai debug-loop",
        description="Train a classifier, explain its failures, fine-tune it on debug sets, and measure the repair.",
    )
    parser.add_argument("--config", action="config", help="file with these options, such as configs/debug_loop.yaml")
    parser.add_class_arguments(DebugLoop)
    options = parser.instantiate_classes(parser.parse_args(words))
    files = config_files(words)
    given = {name: getattr(options, name) for name in DebugLoop.__dataclass_fields__}
    try:
        return DebugLoop(**given), files[-1].parent if files else Path()
    except ValueError as error:
        raise SystemExit(f"lightning-xai debug-loop: {error}") from error
