"""fit, validate, test, predict: Lightning's command line with a run folder, resumable checkpoints and an epoch log."""

import logging
import signal
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities.exceptions import SIGTERMException

from lightning_xai.callbacks.atomic_checkpoint import AtomicCheckpointIO
from lightning_xai.callbacks.epoch_log import EpochLog
from lightning_xai.callbacks.last_checkpoint import LastCheckpoint
from lightning_xai.callbacks.step_seed import StepSeed
from lightning_xai.callbacks.write_detections import WriteDetections
from lightning_xai.cli.configuration import config_files, expand_extends
from lightning_xai.evaluate.detection_ap import ap_table


class SaveRunConfig(SaveConfigCallback):
    """Write the complete configuration to `<run folder>/config.yaml`, so that a run can be repeated from it alone."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.is_global_zero and stage == "fit":
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(folder / "config.yaml"), skip_none=False, overwrite=True)


class TrainingCLI(LightningCLI):
    """Lightning's CLI plus `--run_dir` (what a run writes) and the callbacks that every run has.

    checkpoint: where the weights will come from when no subcommand is run.
    """

    def __init__(self, arguments: list[str], run: bool = True, checkpoint: Path | None = None) -> None:
        quieten()
        self.checkpoint = checkpoint
        self.config_files = config_files(arguments)
        self.runs_subcommand = run
        super().__init__(
            args=expand_extends(arguments),
            run=run,
            seed_everything_default=42,
            save_config_callback=SaveRunConfig if run else None,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if not self.runs_subcommand:  # a run's saved configuration has what `fit` itself is given
            parser.add_argument("--ckpt_path", type=str | None, help="(in files only) what the run was resumed from")
            parser.add_argument("--weights_only", type=bool | None, help="(in files only) how that file was read")
        parser.add_argument("--run_dir", type=str | None, help="folder of the run (default: runs/<name of the config>)")
        parser.add_argument("--extends", type=str | None, help="(in files only) the configuration this one builds on")
        parser.add_argument("--checkpoint_every_n_steps", type=int, default=1000, help="also save inside an epoch")
        parser.add_argument("--monitor", type=str, default="val/AP", help="metric whose largest value marks the best")

    @property
    def settings(self) -> Any:
        return self.config[self.subcommand] if self.subcommand else self.config

    def before_instantiate_classes(self) -> None:
        settings = self.settings
        name = self.config_files[-1].stem if self.config_files else "default"
        self.run_dir = Path(settings.run_dir or settings.trainer.default_root_dir or f"runs/{name}")
        settings.trainer.default_root_dir = settings.run_dir = str(self.run_dir)
        settings.extends = None  # a saved configuration is complete
        self._find_checkpoint(settings)

    def _find_checkpoint(self, settings: Any) -> None:
        """Decide where the weights come from; evaluating random ones is refused."""
        given = settings.get("ckpt_path") if self.runs_subcommand else self.checkpoint
        if given in ("last", "best"):
            given = self.run_dir / "checkpoints" / f"{given}.ckpt"
        exists = given is not None and Path(given).is_file()
        if self.subcommand in ("validate", "test", "predict"):
            if given is not None and not exists:
                raise SystemExit(f"--ckpt_path '{given}': no such file; give one such as RUN/checkpoints/best.ckpt")
            if given is None and not settings.get("model.init_args.checkpoint"):
                raise SystemExit("no weights: give --ckpt_path RUN/checkpoints/best.ckpt, or --model.checkpoint FILE")
            settings.ckpt_path = None if given is None else str(given)
        self.starts_from_checkpoint = exists

    def instantiate_classes(self) -> None:
        """As Lightning does; what a checkpoint will replace is not read first, and a bad argument is one sentence."""
        settings = self.settings
        replaced = {
            "model.init_args.checkpoint": None,
            "model.init_args.drop_class_heads": False,
            "model.init_args.net.init_args.backbone_weights": None,
        }
        kept = {key: settings.get(key) for key in replaced if self.starts_from_checkpoint and key in settings}
        for key in kept:
            settings[key] = replaced[key]
        try:
            super().instantiate_classes()
        except (ValueError, OSError) as error:
            cause: BaseException = error
            while cause.__cause__ is not None or cause.__context__ is not None:
                cause = cause.__cause__ or cause.__context__
            if isinstance(cause, (ValueError, OSError)):
                raise SystemExit(f"lightning-xai: {cause}") from error
            raise
        for key, value in kept.items():  # the saved configuration says what the user gave
            settings[key] = value

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        given = self._get(self.config_init, "trainer")
        callbacks = list(given.get("callbacks") or [])
        settings = self.settings
        if self.subcommand == "fit" and not given.get("fast_dev_run"):
            callbacks += self._fit_callbacks(settings, callbacks, given)
        if self.subcommand == "predict" and not _has(callbacks, WriteDetections):
            callbacks.append(WriteDetections())
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
        callbacks: list[Callback] = [StepSeed(self._get(self.config, "seed_everything"))]
        if not _has(given, EpochLog):
            callbacks.append(EpochLog())
        if trainer.get("logger") is not False:
            callbacks.append(LearningRateMonitor())
        if trainer.get("enable_checkpointing") is not False:
            folder, last = self.run_dir / "checkpoints", {"filename": "last", "enable_version_counter": False}
            steps = settings.checkpoint_every_n_steps
            callbacks += [
                ModelCheckpoint(
                    folder, filename="best", monitor=settings.monitor, mode="max", enable_version_counter=False
                ),
                LastCheckpoint(folder, every_n_train_steps=steps, save_on_exception=True, **last),
                LastCheckpoint(folder, every_n_epochs=1, save_on_train_epoch_end=True, **last),
            ]
        return callbacks

    def _default_logger(self) -> Any:
        from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

        kind = TensorBoardLogger if find_spec("tensorboard") else CSVLogger
        return kind(str(self.run_dir), name="", version="tensorboard" if find_spec("tensorboard") else "csv")

    def before_fit(self) -> None:
        self.started = time.perf_counter()

    def after_fit(self) -> None:
        seconds = time.perf_counter() - self.started
        ap = getattr(self.model, "last_ap", None)
        if not self.trainer.is_global_zero:
            return
        if ap:
            print(ap_table(ap))
            summary = f"AP={ap['AP']:.3f} AP50={ap['AP50']:.3f} "
        else:
            summary = ""
        pictures = self.run_dir / "pictures"
        print(f"{summary}train_seconds={seconds:.0f} pictures={pictures if pictures.exists() else 'none'}", flush=True)

    def after_validate(self) -> None:
        ap = getattr(self.model, "last_ap", None)
        if ap and self.trainer.is_global_zero:
            print(ap_table(ap), flush=True)

    after_test = after_validate

    def before_predict(self) -> None:
        # the detections go to a file batch by batch; Lightning need not collect them once more
        self.config_init[self.subcommand]["return_predictions"] = False


def quieten() -> None:
    """Leave out what Lightning says in every run and nobody needs."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    # the task keeps a batch's targets on the CPU on purpose, whatever data module they come from
    warnings.filterwarnings("ignore", message="You have overridden `transfer_batch_to_device`")
    warnings.filterwarnings("ignore", message=".*LeafSpec")
    # evaluating a checkpoint does not need the callbacks that wrote it
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")


def _has(callbacks: list[Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def run(command: str, arguments: list[str]) -> int:
    try:
        TrainingCLI([command, *arguments])
    except SIGTERMException:
        print("terminated; `--ckpt_path last` goes on from here", file=sys.stderr)
        return 128 + signal.SIGTERM
    return 0
