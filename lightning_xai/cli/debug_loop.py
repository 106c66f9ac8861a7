"""debug-loop: train, find failures, explain them, build a debug set by each strategy, fine-tune on it, measure."""

import hashlib
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from lightning_xai.callbacks.pictures import write_picture
from lightning_xai.cli.classifier_runs import TrainedClassifier, evaluated_images, trained
from lightning_xai.cli.configuration import chain
from lightning_xai.cli.debug_loop_options import DebugLoop, parsed
from lightning_xai.cli.embedded_people import embedded_concepts, require_embedded_world
from lightning_xai.cli.followed_failures import FollowedFailures
from lightning_xai.cli.training import TrainingCLI
from lightning_xai.data.concepts import ClassConcepts, read_concepts
from lightning_xai.data.debugset import write_debugset
from lightning_xai.data.debugset_manifest import Entry, shortages
from lightning_xai.data.debugset_prompts import GENERATIONS, MissingProvider, plan_prompts
from lightning_xai.data.debugset_selection import SELECTIONS, ClassifiedImages, plan_selection
from lightning_xai.data.image_folder import ImageFolderModule
from lightning_xai.data.token_learners import ClassNameToken
from lightning_xai.draw.debug_report import draw_repair
from lightning_xai.evaluate.debug_report import BEFORE, Judged, RepairTable, broken, by_class, json_text, repaired
from lightning_xai.explain.explain_batch import methods_by_name

HUMAN = "G-TG-human-prompt"


def run(command: str, words: list[str]) -> int:
    loop, folder = parsed(words)
    logging.getLogger("lightning_fabric.utilities.seed").setLevel(logging.WARNING)  # says the same for every step
    try:
        Loop(loop, folder).run()
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"lightning-xai debug-loop: {error}") from error
    return 0


class Loop:
    """One run of the loop; each step leaves its result in `run_dir`, so that an interrupted run goes on there."""

    def __init__(self, options: DebugLoop, folder: Path):
        self.options = options
        self.config = folder / options.classifier
        self.concepts_file = None if options.concepts is None else folder / options.concepts
        self.run_dir = Path(options.run_dir)
        self.features = self.run_dir / "features"
        self.repair_file = self.run_dir / "repair.yaml"
        self.numbers: dict[str, dict[str, list[float]]] = {}
        self.classes: dict[str, dict[int, Any]] = {}
        self.followed: FollowedFailures | None = None

    def run(self) -> RepairTable:
        self._begin()
        for seed in self.options.seeds:
            self._seed(seed)
        table = RepairTable(tuple(self.options.seeds), self.numbers)
        files = table.write(self.run_dir)
        per_class = self.run_dir / "debug_report_classes.json"
        per_class.write_text(json_text(self.classes), encoding="utf-8")
        baseline = "S-Random" if "S-Random" in self.numbers else None
        text = f"{table.text(baseline)}\n{table.note(gains=True)}"
        (self.run_dir / "debug_report.txt").write_text(text + "\n", encoding="utf-8")
        print(text)
        files += [per_class, *self._draw(table, baseline)]
        print(" ".join(map(str, files)), flush=True)
        return table

    def _begin(self) -> None:
        """Refuse what cannot work before anything is trained."""
        if not self.config.is_file():
            raise FileNotFoundError(
                f"classifier '{self.config}': no such file; give a `fit` configuration, relative to the loop's own file"
            )
        options = self.options
        if options.checkpoint is not None and not Path(options.checkpoint).is_file():
            raise FileNotFoundError(f"checkpoint '{options.checkpoint}': no such file")
        if self.concepts_file is not None and not self.concepts_file.is_file():
            raise FileNotFoundError(
                f"concepts '{self.concepts_file}': no such file; give a file of `lightning-xai debugset concepts`, "
                "relative to the loop's own file"
            )
        methods_by_name(options.method)
        described, mark = self._described(), self.run_dir / "loop.sha256"
        if mark.is_file() and mark.read_text() != described:
            raise FileExistsError(f"run_dir '{self.run_dir}' holds the run of another configuration; give another one")
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.repair_file.write_text(yaml.safe_dump(options.repair))
        self._check_data()
        mark.write_text(described)

    def _check_data(self) -> None:
        """Draw the embedded world where it is the data, and see that folders and providers are there."""
        options = self.options
        cli = TrainingCLI([*self._words(options.seeds[0]), "--run_dir", str(self.features)], run=False)
        if cli.trainer.world_size > 1:
            raise ValueError(
                f"the loop runs in one process, but the classifier's trainer asks for {cli.trainer.world_size}: run "
                "its steps one by one: fit, debugset, fit, test"
            )
        TrainingCLI([*self._words(options.seeds[0], self.repair_file), "--run_dir", str(self.features)], run=False)
        data = cli.datamodule
        if not isinstance(data, ImageFolderModule):
            raise ValueError(
                f"the data of classifier '{self.config}' are of {type(data).__name__}, but the loop needs folders of "
                "images by class: give an ImageFolderModule"
            )
        data.prepare_data()
        self._check_folders(data)
        human: Mapping[str, ClassConcepts] = {}
        if self.concepts_file is not None:
            human = read_concepts(self.concepts_file)
        elif HUMAN in options.strategies:
            require_embedded_world(data.root)
        for strategy in options.strategies:
            if strategy in GENERATIONS and options.generator is None:
                raise MissingProvider(
                    f"{strategy} needs an image generator: give `generator`, such as class_path: FolderImages (images "
                    "made elsewhere: `lightning-xai debugset export-prompts`), or leave the G- strategies out"
                )
            if strategy in GENERATIONS:  # a rehearsal, which raises where another provider is missing
                learner = options.learner and ClassNameToken()
                plan_prompts(strategy, data.class_names, 1, lister=options.lister, learner=learner, concepts=human)

    def _check_folders(self, data: ImageFolderModule) -> None:
        """See that the folders hold images of the classes, and that repair is not measured on images that are used."""
        given = {name: getattr(self.options, name) for name in ("test", "heldout", "discovery", "pool")}
        for name, folder in given.items():
            if not (data.root / folder).is_dir():
                raise FileNotFoundError(f"{name}: '{data.root / folder}' is no folder of images by class")
        (*measured, discovery, pool), trained_on = given.items(), [("train", folder) for folder in data.train]
        for (one, first), (other, second) in [*product(measured, [discovery, pool, *trained_on]), (discovery, pool)]:
            here, there = ((data.root / folder).resolve() for folder in (first, second))
            if here == there or here in there.parents or there in here.parents:
                raise ValueError(
                    f"{one} '{first}' and {other} '{second}' must be different folders, none inside the other, or "
                    "repair is measured on images that were used for it"
                )
        for name, folder in given.items():
            evaluated_images(data, folder, masks=name == "heldout" and data.masks is not None)  # raises what is wrong

    def _described(self) -> str:
        """A name for what the result of a seed and strategy depends on, but for the images: more may be added later."""
        added = ("run_dir", "seeds", "strategies", "pictures", "debug_pictures")
        content = {name: str(value) for name, value in vars(self.options).items() if name not in added}
        for provider in ("generator", "lister", "learner"):
            value = getattr(self.options, provider)
            content[provider] = "" if value is None else f"{type(value).__name__} {sorted(vars(value).items())}"
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        for file in (*chain(self.config), *([self.concepts_file] if self.concepts_file else [])):
            key.update(file.read_bytes())
        if self.options.checkpoint is not None:  # too large to be read for this
            status = Path(self.options.checkpoint).stat()
            key.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        return key.hexdigest()

    def _words(self, seed: int, *repair: Path) -> list[str]:
        files = [word for file in (self.config, *repair) for word in ("--config", str(file))]
        return [*files, "--seed_everything", str(seed), "--data.seed", str(seed)]

    def _seed(self, seed: int) -> None:
        options, folder, start = self.options, self.run_dir / f"seed_{seed}", time.perf_counter()
        quiet = ["--trainer.enable_progress_bar", "false"]
        words = [*self._words(seed), *quiet]
        if options.checkpoint is None:
            checkpoint = trained(words, folder / "before")
        else:
            checkpoint = Path(options.checkpoint)
        first = TrainedClassifier(words, checkpoint, self.features, folder / "log.txt")
        before = self._measure(first, BEFORE, seed, None)
        if self.followed is None:  # of the first seed
            self.followed = FollowedFailures(first, options.heldout, options.pictures, options.method)
            self.followed.add(BEFORE, first)
        self._show_failures(first, folder / "failures.png")
        self._say(seed, BEFORE, start)
        concepts = self._concepts(first, folder)
        discovery = first.judged(options.discovery)
        for strategy in options.strategies:
            start = time.perf_counter()
            debugset = folder / strategy / "debugset"
            entries = self._entries(strategy, first, discovery, concepts, seed)
            self._say_missing(seed, strategy, entries, first.class_names)
            generator = options.generator if strategy in GENERATIONS else None
            write_debugset(entries, debugset, first.class_names, generator, batch_size=64)
            repair = [*self._repair_words(first, checkpoint, debugset, seed), *quiet]
            repaired_at = trained(repair, folder / strategy)
            after = TrainedClassifier(words, repaired_at, self.features, folder / "log.txt")
            self._measure(after, strategy, seed, before)
            if seed == options.seeds[0]:
                self.followed.add(strategy, after)
            self._say(seed, strategy, start)

    def _show_failures(self, first: TrainedClassifier, file: Path) -> None:
        """Explain failures of the discovery set, from which debug sets will be built."""
        failures = FollowedFailures(first, self.options.discovery, self.options.pictures, self.options.method)
        failures.add(BEFORE, first)
        picture = failures.picture()
        if picture is None:
            print(f"no failure among the images of {self.options.discovery}", flush=True)
            return
        write_picture(file, picture)
        judged = first.judged(self.options.discovery)
        wrong = int((judged.logits.argmax(1) != judged.labels).sum())
        print(f"{wrong} of {len(judged.labels)} images of {self.options.discovery} are failures: {file}", flush=True)

    def _repair_words(self, first: TrainedClassifier, checkpoint: Path, debugset: Path, seed: int) -> list[str]:
        folders = [*(first.data.train if self.options.mode == "augment" else ()), str(debugset.absolute())]
        repair = self._words(seed, self.repair_file)
        if self.options.debug_pictures and seed == self.options.seeds[0]:
            pictures = {
                "class_path": "lightning_xai.callbacks.debug_set_explanations.DebugSetExplanations",
                "init_args": {
                    "folder": folders[-1],
                    "methods": dict(self.options.method),
                    "samples": self.options.debug_pictures,
                },
            }
            repair += ["--trainer.callbacks", json.dumps([pictures])]
        else:
            repair += ["--trainer.callbacks", "[]"]
        weights = ["--model.checkpoint", str(checkpoint), "--model.load", "continue"]
        return [*repair, *weights, "--data.train", json.dumps(folders)]

    def _measure(
        self, classifier: TrainedClassifier, strategy: str, seed: int, before: dict[str, Judged] | None
    ) -> dict[str, Judged]:
        """Add a classifier's numbers to the table; `before` is what the first one answered."""
        options, judged = self.options, {}
        for name in ("test", "heldout"):
            images = classifier.judged(getattr(options, name))
            judged[name] = Judged(images.labels, images.logits.argmax(1))
        row = {name: of.accuracy for name, of in judged.items()}
        if before is not None:
            row["repaired"] = repaired(before["heldout"], judged["heldout"])
            row["broken"] = broken(before["test"], judged["test"])
            names = classifier.class_names
            self.classes.setdefault(strategy, {})[seed] = {
                name: by_class(before[name], judged[name], names) for name in judged
            }
        if classifier.data.masks is not None:
            row["energy"] = classifier.energy(options.heldout, options.method)
        numbers = self.numbers.setdefault(strategy, {})
        for name, value in row.items():
            numbers.setdefault(name, []).append(value)
        return judged

    def _concepts(self, first: TrainedClassifier, folder: Path) -> Mapping[str, ClassConcepts]:
        if HUMAN not in self.options.strategies:
            return {}
        if self.concepts_file is not None:
            return read_concepts(self.concepts_file)
        return embedded_concepts(first, self.options.discovery, self.options.method, folder / "people")

    def _entries(
        self,
        strategy: str,
        first: TrainedClassifier,
        discovery: ClassifiedImages,
        concepts: Mapping[str, ClassConcepts],
        seed: int,
    ) -> list[Entry]:
        options, names = self.options, first.class_names
        if strategy in SELECTIONS:
            return plan_selection(strategy, first.judged(options.pool), names, options.count, seed, discovery)
        images: dict[str, list[str]] = {name: [] for name in names}
        for train in map(first.images, first.data.train):
            for path, label in zip(train.paths, train.labels.tolist(), strict=True):
                images[names[label]].append(str(path))
        return plan_prompts(
            strategy,
            names,
            options.count,
            seed,
            lister=options.lister,
            learner=options.learner,
            training_images=images,
            concepts=concepts,
            provider=options.generator.provider,
        )

    def _say_missing(self, seed: int, strategy: str, entries: Sequence[Entry], class_names: list[str]) -> None:
        """Say for which classes a debug set is not what was asked for."""
        notes = dict.fromkeys(f"{entry.class_name}: {entry.note}" for entry in entries if entry.note)
        for line in (*shortages(entries, class_names, self.options.count), *notes):
            print(f"seed {seed}, {strategy}: {line}", file=sys.stderr, flush=True)

    def _say(self, seed: int, strategy: str, start: float) -> None:
        numbers = {name: values[-1] for name, values in self.numbers[strategy].items()}
        said = ", ".join(f"{name} {value:.1%}" for name, value in numbers.items())
        print(f"seed {seed}, {strategy}: {said} ({time.perf_counter() - start:.0f} s)", flush=True)

    def _draw(self, table: RepairTable, baseline: str | None) -> list[Path]:
        files = [self.run_dir / "debug_report.png"]
        intervals = {strategy: table.row(strategy) for strategy in table.runs}
        write_picture(files[0], draw_repair(table.runs, intervals, table.note()))
        picture = self.followed.picture()
        if picture is not None:
            files.append(self.run_dir / "debug_maps.png")
            write_picture(files[-1], picture)
        return files
