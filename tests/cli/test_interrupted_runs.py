"""Runs that are killed, resumed or spread over processes end where an uninterrupted run on one process ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CONFIG = """
seed_everything: 3
trainer:
  accelerator: cpu
  max_epochs: 2
  num_sanity_val_steps: 0
  log_every_n_steps: 2
  enable_progress_bar: false
  logger: false
checkpoint_every_n_steps: 3
model:
  class_path: lightning_xai.tasks.detection.DetectionTask
  init_args:
    lr: 1.0e-3
    lr_backbone: 1.0e-3
    schedule: cosine
    net:
      class_path: lightning_xai.nets.deformable_detr.DeformableDETR
      init_args:
        num_classes: 6
        backbone: timm:resnet10t
        backbone_args: {channels: [8, 8, 16, 16], stem_width: 8, norm_layer: groupnorm1}
        hidden_dim: 32
        num_heads: 4
        num_feature_levels: 3
        out_strides: [8, 16, 32]
        num_encoder_layers: 1
        num_decoder_layers: 2
        dim_feedforward: 32
        num_queries: 20
        dropout: DROPOUT
data:
  class_path: lightning_xai.data.embedded_detection.EmbeddedDetectionModule
  init_args:
    recipe: {height: 64, width: 64, max_size: 40}
    n_train: 48
    n_val: 10
    batch_size: BATCH
    eval_batch_size: 5
"""
# Stops its process at a given step, as a machine that loses power or a scheduler that reclaims a node would.
STOPPER = """
import os, signal
import pytorch_lightning as pl

class StopAtStep(pl.Callback):
    def __init__(self, step: int, with_signal: int):
        self.step, self.signal = step, with_signal

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signal)
"""


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def write_config(folder: Path, batch: int = 8, dropout: float = 0.1) -> Path:
    (folder / "stopper.py").write_text(STOPPER)
    config = folder / f"config{batch}.yaml"
    config.write_text(CONFIG.replace("BATCH", str(batch)).replace("DROPOUT", str(dropout)))
    return config


def fit(folder: Path, config: Path, run: str, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lightning_xai", "fit", "--config", str(config), "--run_dir", str(folder / run)]
    return subprocess.run([*command, *options], env=environment(folder), cwd=folder, capture_output=True, text=True)


def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    file = folder / run / "checkpoints" / "last.ckpt"
    return torch.load(file, map_location="cpu", weights_only=True)["state_dict"]


def log(folder: Path, run: str) -> list[dict]:
    return [json.loads(line) for line in (folder / run / "log.jsonl").read_text().splitlines()]


def assert_same_weights(ours: dict, theirs: dict, atol: float) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        difference = (ours[name].double() - theirs[name].double()).abs().max()
        assert difference <= atol, f"{name} differs by {difference}"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    done = fit(folder, write_config(folder), "whole")
    assert done.returncode == 0, done.stderr
    assert "AP=" in done.stdout.splitlines()[-1] and "pictures=" in done.stdout.splitlines()[-1]
    return folder


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_a_stopped_run_resumes_where_it_was(uninterrupted, with_signal):
    run = f"stopped{with_signal.value}"
    config = uninterrupted / "config8.yaml"
    stop = ["--trainer.callbacks+=stopper.StopAtStep", "--trainer.callbacks.step=8"]
    stopped = fit(uninterrupted, config, run, *stop, f"--trainer.callbacks.with_signal={with_signal.value}")
    assert stopped.returncode == (-signal.SIGKILL if with_signal == signal.SIGKILL else 128 + signal.SIGTERM)
    saved = torch.load(uninterrupted / run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    # step 8 of 12 is inside the second epoch; a kill leaves the last periodic checkpoint, SIGTERM saves on its way out
    assert saved == (6 if with_signal == signal.SIGKILL else 9)

    resumed = fit(uninterrupted, config, run, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_weights(weights(uninterrupted, run), weights(uninterrupted, "whole"), atol=1e-6)
    assert [line["epoch"] for line in log(uninterrupted, run)] == [0, 1]
    for ours, whole in zip(log(uninterrupted, run), log(uninterrupted, "whole"), strict=True):
        assert ours["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-5)
        assert ours["test_loss"] == pytest.approx(whole["test_loss"], rel=1e-5)


def launch(
    folder: Path, config: Path, run: str, per_node: int, rank: int, port: int, *options: str
) -> subprocess.Popen:
    variables = {"GPUS_PER_NODE": str(per_node), "NODE_RANK": str(rank), "MASTER_PORT": str(port)}
    tools = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [
        "bash",
        str(ROOT / "tools/run_dist_launch.sh"),
        "2",
        str(config),
        "--run_dir",
        str(folder / run),
        *options,
    ]
    return subprocess.Popen(
        command,
        env=environment(folder) | variables | tools,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_config(folder, batch=4, dropout=0.0)
    done = fit(folder, write_config(folder, batch=8, dropout=0.0), "one")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("nodes", [1, 2], ids=["one machine", "two machines"])
def test_two_processes_train_like_one(one_process, free_port, nodes):
    run, port = f"{nodes}x{2 // nodes}", free_port()
    config = one_process / "config4.yaml"
    launched = [launch(one_process, config, run, 2 // nodes, rank, port) for rank in range(nodes)]
    outputs = [process.communicate(timeout=300)[0] for process in launched]
    assert [process.returncode for process in launched] == [0] * nodes, "\n".join(outputs)
    for ours, alone in zip(log(one_process, run), log(one_process, "one"), strict=True):
        assert ours["train_loss"] == pytest.approx(alone["train_loss"], rel=2e-3)
        assert ours["test_loss"] == pytest.approx(alone["test_loss"], rel=2e-3)
    assert_same_weights(weights(one_process, run), weights(one_process, "one"), atol=2e-3)

    # a second life of the same job with one epoch more goes on from the last checkpoint
    port = free_port()
    more = ["--ckpt_path", "last", "--trainer.max_epochs", "3"]
    launched = [launch(one_process, config, run, 2 // nodes, rank, port, *more) for rank in range(nodes)]
    outputs = [process.communicate(timeout=300)[0] for process in launched]
    assert [process.returncode for process in launched] == [0] * nodes, "\n".join(outputs)
    assert [line["epoch"] for line in log(one_process, run)] == [0, 1, 2]


def test_slurm_script_asks_srun_for_the_right_job(tmp_path):
    stub = tmp_path / "srun"
    stub.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GPUS_PER_NODE": "8"}
    variables["SRUN_ARGS"] = "--exclude=node7 --mem=0"

    def submit(*words: str) -> subprocess.CompletedProcess:
        command = ["bash", str(ROOT / "tools/run_dist_slurm.sh"), *words]
        return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)

    submitted = submit("gpu", "detr", "16", "configs/deformable_detr_r50.yaml", "--trainer.max_epochs", "1")
    assert submitted.returncode == 0
    asked = submitted.stdout.splitlines()
    for option, value in {"--partition": "gpu", "--nodes": "2", "--ntasks-per-node": "8", "--gres": "gpu:8"}.items():
        assert asked[asked.index(option) + 1] == value
    assert "--exclude=node7" in asked and "--mem=0" in asked
    assert asked[asked.index("--trainer.num_nodes") + 1] == "2"
    assert asked[-2:] == ["--trainer.max_epochs", "1"]

    uneven = submit("gpu", "detr", "12", "config.yaml")
    assert uneven.returncode == 2 and "12 processes" in uneven.stderr
    assert submit("gpu", "detr").returncode == 2
