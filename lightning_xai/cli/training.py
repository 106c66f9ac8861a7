"""fit, validate, test, predict: Lightning's command line with a run folder, resumable checkpoints and an epoch log."""

import logging
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities.exceptions import SIGTERMException

from lightning_xai.callbacks.atomic_checkpoint import AtomicCheckpointIO
from lightning_xai.callbacks.epoch_log import EpochLog
from lightning_xai.callbacks.last_checkpoint import LastCheckpoint
from lightning_xai.callbacks.step_seed import StepSeed
from lightning_xai.callbacks.write_detections import WriteDetections
from lightning_xai.callbacks.write_scores import WriteScores
from lightning_xai.cli.configuration import config_files, expand_extends
from lightning_xai.cli.our_sentence import causes, our_sentence
from lightning_xai.evaluate.detection_ap import ap_table
from lightning_xai.evaluate.method_table import method_table, write_csv, write_json

# where a configuration's task may be: the model itself, or inside a model that explains it
TASK_PLACES = ("model.init_args", "model.init_args.task.init_args")
METHOD_HELP = (
    "--method NAME [--method NAME ...]: of a model that has explanation methods only these, by their names in the "
    "configuration or their own, such as generic_relevance or generic_relevance:normalise=false"
)


class SaveRunConfig(SaveConfigCallback):
    """Write the complete configuration to `<run folder>/config.yaml`, so that a run can be repeated from it alone."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.is_global_zero and stage == "fit":
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(folder / "config.yaml"), skip_none=False, overwrite=True)


class TrainingCLI(LightningCLI):
    """Lightning's CLI plus `--run_dir` (what a run writes) and the callbacks that every run has.

    checkpoint: where the weights will come from when no subcommand is run. methods: the explanation methods that a test
    run is restricted to, by their names in the configuration or their own.
    """

    def __init__(
        self, arguments: list[str], run: bool = True, checkpoint: Path | None = None, methods: Sequence[str] = ()
    ) -> None:
        quieten()
        self.checkpoint = checkpoint
        self.methods = list(methods)
        self.config_files = config_files(arguments)
        self.runs_subcommand = run
        super().__init__(
            args=expand_extends(arguments),
            run=run,
            seed_everything_default=42,
            save_config_callback=SaveRunConfig if run else None,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            parser_kwargs={"test": {"epilog": METHOD_HELP}} if run else None,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if not self.runs_subcommand:  # a run's saved configuration has what `fit` itself is given
            parser.add_argument("--ckpt_path", type=str | None, help="(in files only) what the run was resumed from")
            parser.add_argument("--weights_only", type=bool | None, help="(in files only) how that file was read")
        parser.add_argument("--run_dir", type=str | None, help="folder of the run (default: runs/<name of the config>)")
        parser.add_argument("--extends", type=str | None, help="(in files only) the configuration this one builds on")
        parser.add_argument(
            "--num_threads", type=int | None, help="threads of one operation on a CPU; 1 is best where tensors are tiny"
        )
        parser.add_argument("--checkpoint_every_n_steps", type=int, default=1000, help="also save inside an epoch")
        parser.add_argument(
            "--monitor",
            type=str,
            default="val/AP",
            help="metric whose best value, of a loss the smallest, marks the best",
        )

    @property
    def settings(self) -> Any:
        return self.config[self.subcommand] if self.subcommand else self.config

    def before_instantiate_classes(self) -> None:
        settings = self.settings
        name = self.config_files[-1].stem if self.config_files else "default"
        self.run_dir = Path(settings.run_dir or settings.trainer.default_root_dir or f"runs/{name}")
        settings.trainer.default_root_dir = settings.run_dir = str(self.run_dir)
        settings.extends = None  # a saved configuration is complete
        if settings.num_threads is not None:
            if settings.num_threads < 1:
                raise SystemExit(f"--num_threads {settings.num_threads} must be at least 1")
            torch.set_num_threads(settings.num_threads)
        self._choose_methods(settings)
        self._find_checkpoint(settings)

    def _choose_methods(self, settings: Any) -> None:
        """Only the methods that `--method` named, with the options that the configuration gives them."""
        if not self.methods:
            return
        if self.subcommand != "test" or "model.init_args.methods" not in settings:
            raise SystemExit(
                "--method belongs to `test` with a model that has explanation methods, such as that of "
                "configs/detr_segmentation.yaml"
            )
        from lightning_xai.cli.method_option import methods_of_options
        from lightning_xai.explain.explain_batch import methods_by_name

        configured = settings.model.init_args.methods
        options = configured if isinstance(configured, dict) else dict.fromkeys(configured)
        try:
            others = methods_of_options([name for name in self.methods if name not in options])
            chosen = {name: others.get(name) or options[name] or {} for name in self.methods}
            methods_by_name(chosen)
        except ValueError as error:
            raise SystemExit(f"lightning-xai: {error}; this configuration names {', '.join(options)}") from error
        settings.model.init_args.methods = chosen

    def _find_checkpoint(self, settings: Any) -> None:
        """Decide where the weights come from; evaluating random ones is refused."""
        given = settings.get("ckpt_path") if self.runs_subcommand else self.checkpoint
        if given in ("last", "best"):
            given = self.run_dir / "checkpoints" / f"{given}.ckpt"
        exists = given is not None and Path(given).is_file()
        if self.subcommand in ("validate", "test", "predict"):
            if given is not None and not exists:
                raise SystemExit(f"--ckpt_path '{given}': no such file; give one such as RUN/checkpoints/best.ckpt")
            if given is None and not any(settings.get(f"{place}.checkpoint") for place in TASK_PLACES):
                option = "--model.task.checkpoint" if "model.init_args.task" in settings else "--model.checkpoint"
                raise SystemExit(f"no weights: give --ckpt_path RUN/checkpoints/best.ckpt, or {option} FILE")
            settings.ckpt_path = None if given is None else str(given)
        self.starts_from_checkpoint = exists

    def instantiate_classes(self) -> None:
        """As Lightning does; what a checkpoint will replace is not read first, and a bad argument is one sentence."""
        settings = self.settings
        replaced: dict[str, Any] = {}
        for place in TASK_PLACES:
            if self.starts_from_checkpoint:
                replaced |= {f"{place}.checkpoint": None, f"{place}.drop_class_heads": False}
            if self.starts_from_checkpoint or settings.get(f"{place}.checkpoint"):
                replaced[f"{place}.net.init_args.backbone_weights"] = None
        kept = {key: settings.get(key) for key in replaced if key in settings}
        for key in kept:
            settings[key] = replaced[key]
        try:
            super().instantiate_classes()
        except Exception as error:
            last = list(causes(error))[-1]
            sentence = our_sentence(error) or (str(last) if isinstance(last, (ValueError, OSError)) else None)
            if sentence is None:
                raise
            raise SystemExit(f"lightning-xai: {sentence}") from error
        for key, value in kept.items():  # the saved configuration says what the user gave
            settings[key] = value

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        given = self._get(self.config_init, "trainer")
        callbacks = list(given.get("callbacks") or [])
        settings = self.settings
        if self.subcommand == "fit" and not given.get("fast_dev_run"):
            callbacks += self._fit_callbacks(settings, callbacks, given)
        if self.subcommand == "predict":
            callbacks += self._predict_callbacks(callbacks)
        if self.subcommand == "test" and not _has(callbacks, WriteScores):
            callbacks.append(WriteScores())
        if given.get("enable_progress_bar") is not False and not _has(callbacks, RichProgressBar):
            callbacks.append(RichProgressBar(refresh_rate=10))
        kwargs["callbacks"] = callbacks
        if given.get("logger") in (None, True):
            kwargs["logger"] = self._default_logger() if self.subcommand == "fit" else False
        plugins = given.get("plugins") or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        # our samplers split every epoch over the processes themselves, without padding the evaluation
        kwargs["use_distributed_sampler"] = False
        return super().instantiate_trainer(**kwargs)

    def _fit_callbacks(self, settings: Any, given: list[Callback], trainer: Any) -> list[Callback]:
        folder = self.run_dir / "checkpoints"
        for callback in given:  # those of a configuration, such as the best by another metric, beside ours
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder)
        callbacks: list[Callback] = [StepSeed(self._get(self.config, "seed_everything"))]
        if not _has(given, EpochLog):
            callbacks.append(EpochLog())
        if trainer.get("logger") is not False:
            callbacks.append(LearningRateMonitor())
        if trainer.get("enable_checkpointing") is not False:
            last = {"filename": "last", "enable_version_counter": False}
            steps, mode = settings.checkpoint_every_n_steps, "min" if settings.monitor.endswith("loss") else "max"
            callbacks += [
                ModelCheckpoint(
                    folder, filename="best", monitor=settings.monitor, mode=mode, enable_version_counter=False
                ),
                LastCheckpoint(folder, every_n_train_steps=steps, save_on_exception=True, **last),
                LastCheckpoint(folder, every_n_epochs=1, save_on_train_epoch_end=True, **last),
            ]
        return callbacks

    def _predict_callbacks(self, given: list[Callback]) -> list[Callback]:
        """What writes the predictions of this kind of task, unless the configuration has it already."""
        kind: type[Callback] = WriteDetections
        if hasattr(self._get(self.config_init, "model"), "captions"):
            from lightning_xai.callbacks.write_captions import WriteCaptions

            kind = WriteCaptions
        elif hasattr(self._get(self.config_init, "model"), "classify"):
            from lightning_xai.callbacks.write_predictions import WritePredictions

            kind = WritePredictions
        return [] if _has(given, kind) else [kind()]

    def _default_logger(self) -> Any:
        from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

        kind = TensorBoardLogger if find_spec("tensorboard") else CSVLogger
        return kind(str(self.run_dir), name="", version="tensorboard" if find_spec("tensorboard") else "csv")

    def before_fit(self) -> None:
        self.started = time.perf_counter()

    def after_fit(self) -> None:
        seconds = time.perf_counter() - self.started
        if not self.trainer.is_global_zero:
            return
        table = evaluation_table(self.model)
        if table:
            print(table)
        ap, scores = getattr(self.model, "last_ap", None), getattr(self.model, "last_scores", None)
        numbers = {name: ap[name] for name in ("AP", "AP50")} if ap else scores or {}
        summary = "".join(f"{name}={value:.3f} " for name, value in numbers.items())
        pictures = self.run_dir / "pictures"
        print(f"{summary}train_seconds={seconds:.0f} pictures={pictures if pictures.exists() else 'none'}", flush=True)

    def after_validate(self) -> None:
        table = evaluation_table(self.model)
        if table and self.trainer.is_global_zero:
            print(table, flush=True)

    def after_test(self) -> None:
        self.after_validate()
        table = getattr(self.model, "last_table", None)
        if table and self.trainer.is_global_zero:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            write_csv(table, self.run_dir / "explanations.csv")
            write_json(table, self.run_dir / "explanations.json")
            print(method_table(table), flush=True)
            print(f"table={self.run_dir / 'explanations.csv'}", flush=True)

    def before_predict(self) -> None:
        # the detections go to a file batch by batch; Lightning need not collect them once more
        self.config_init[self.subcommand]["return_predictions"] = False


def evaluation_table(task: pl.LightningModule) -> str | None:
    """What a task measured in its last evaluation, as text to print: a detector's AP, or other tasks' scores."""
    if getattr(task, "last_ap", None):
        return ap_table(task.last_ap)
    scores = getattr(task, "last_scores", None)
    if not scores:
        return None
    if {"acc1", "acc5", "loss"} <= set(scores):
        from lightning_xai.tasks.classification_scores import score_table

        samples = getattr(task, "last_samples", None)
        return score_table(scores, None if samples is None else len(samples["index"]))
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())


def quieten() -> None:
    """Leave out what Lightning says in every run and nobody needs."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    # the task keeps a batch's targets on the CPU on purpose, whatever data module they come from
    warnings.filterwarnings("ignore", message="You have overridden `transfer_batch_to_device`")
    warnings.filterwarnings("ignore", message=".*LeafSpec")
    # a linear probe keeps its encoder in eval mode
    warnings.filterwarnings("ignore", message="Found .* module.* in eval mode at the start of training")
    # Lightning and we call what jsonargparse renamed in 4.49, until nobody has an older one
    warnings.filterwarnings("ignore", message=".*instantiate_classes", category=DeprecationWarning)
    # evaluating a checkpoint does not need the callbacks that wrote it
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")


def _has(callbacks: list[Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def methods_named(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The values of all `--method NAME` options, and the other arguments. Raises SystemExit for one without a name."""
    methods, others, words = [], [], iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--method":
            others.append(word)
            continue
        name = value if equals else next(words, "")
        if not name or name.startswith("--"):
            raise SystemExit("--method needs the name of an explanation method, such as generic_relevance")
        methods.append(name)
    return methods, others


def run(command: str, arguments: list[str]) -> int:
    methods, others = methods_named(arguments)
    try:
        TrainingCLI([command, *others], methods=methods)
    except SIGTERMException:
        print("terminated; `--ckpt_path last` goes on from here", file=sys.stderr)
        return 128 + signal.SIGTERM
    except UnpicklingError as error:
        raise SystemExit(
            f"lightning-xai: --ckpt_path in '{' '.join(others)}' is a file of more than weights, so it is no "
            "checkpoint of this project; weights of other repositories are given as --model.checkpoint FILE"
        ) from error
    except Exception as error:
        sentence = our_sentence(error)
        if sentence is None:  # a mistake of ours or of a library
            raise
        raise SystemExit(f"lightning-xai: {sentence}") from error
    return 0
