"""One JSON line an epoch, in the words of the original Deformable DETR's log.txt."""

import json
import resource
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_xai.evaluate.detection_ap import AP_NAMES


class EpochLog(pl.Callback):
    """Append to `<run folder>/log.jsonl` and print one line after every epoch.

    Keys: `train_<loss>` and `test_<loss>` (means over the epoch), `test_coco_eval_bbox` (12 numbers) of a detector or
    `test_<score>` of another task, `epoch`, `n_parameters`, and beyond the original `seconds_per_step`,
    `peak_memory_mib`, `lr`. The module gives the losses by `epoch_losses(stage)` and the numbers by `last_ap` or
    `last_scores`. A resumed run keeps the lines of the epochs it does not repeat.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.training_seconds = 0.0
        self.started = 0.0
        self.validated = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not on_fit_start: a resumed run's counters are restored after it, and it may begin in mid-epoch.
        self.steps, self.training_seconds, self.started = 0, 0.0, time.perf_counter()
        self.file = Path(trainer.default_root_dir) / "log.jsonl"
        if trainer.is_global_zero and trainer.global_step == 0 and self.file.exists():
            number = 1
            while (kept := self.file.with_name(f"log.previous{number}.jsonl")).exists():
                number += 1
            self.file.rename(kept)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps, self.training_seconds, self.started = 0, 0.0, time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.steps += 1
        now = time.perf_counter()
        self.training_seconds += now - self.started
        self.started = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()
        self.validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        line: dict[str, Any] = {f"train_{k}": v for k, v in pl_module.epoch_losses("train").items()}
        validated, self.validated, said = self.validated, False, ""
        if validated:
            line |= {f"test_{k}": v for k, v in pl_module.epoch_losses("val").items()}
            ap, scores = getattr(pl_module, "last_ap", None), getattr(pl_module, "last_scores", None)
            if ap:
                line["test_coco_eval_bbox"] = [ap[name] for name in AP_NAMES]
                said = f"  AP {ap['AP']:.3f}  AP50 {ap['AP50']:.3f}"
            elif scores:
                line |= {f"test_{name}": value for name, value in scores.items()}
                said = "".join(f"  val {name} {value:.4f}" for name, value in scores.items())
        line["epoch"] = trainer.current_epoch
        line["n_parameters"] = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        line["seconds_per_step"] = self.training_seconds / max(self.steps, 1)
        line["peak_memory_mib"] = _peak_memory_mib(pl_module.device)
        line["lr"] = [group["lr"] for group in trainer.optimizers[0].param_groups]
        if not trainer.is_global_zero:
            return
        self._write(line)
        print(
            f"epoch {trainer.current_epoch:3d}  loss {line.get('train_loss', float('nan')):7.3f}{said}"
            f"  {1000 * line['seconds_per_step']:.0f} ms/step  peak {line['peak_memory_mib']:.0f} MiB",
            flush=True,
        )

    def _write(self, line: dict[str, Any]) -> None:
        """Put the line behind those of earlier epochs; what an interrupted run wrote of later ones is done again."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        lines = [earlier for earlier in lines if json.loads(earlier)["epoch"] < line["epoch"]]
        unfinished = self.file.with_suffix(".part")
        unfinished.write_text("".join(text + "\n" for text in [*lines, json.dumps(line)]))
        unfinished.replace(self.file)


def _peak_memory_mib(device: torch.device) -> float:
    """Peak of the GPU's allocator, or of the process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
