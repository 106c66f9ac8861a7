"""A configured task with trained weights, ready to be looked at."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from lightning_xai.cli.training import TASK_PLACES, TrainingCLI
from lightning_xai.nets.weight_files import read_weight_file


def configured_with_weights(words: list[str], checkpoint: Path | None) -> TrainingCLI:
    """Model, data and trainer of a configuration, the model in eval mode.

    Its weights are those of `checkpoint` (of this project), or of the file that `--model.checkpoint` names.
    """
    if checkpoint is not None and not checkpoint.is_file():
        raise SystemExit(f"--ckpt_path '{checkpoint}': no such file; give one such as RUN/checkpoints/best.ckpt")
    cli = TrainingCLI(words, run=False, checkpoint=checkpoint)
    cli.model.eval()
    if checkpoint is None:
        if not any(cli.config.get(f"{place}.checkpoint") for place in TASK_PLACES):
            raise SystemExit("no weights: give --ckpt_path RUN/checkpoints/best.ckpt, or --model.checkpoint FILE")
        return cli
    try:
        weights = read_weight_file(checkpoint)
    except ValueError as error:
        raise SystemExit(f"--ckpt_path: {error}") from error
    if not isinstance(weights, dict) or "state_dict" not in weights:
        raise SystemExit(
            f"--ckpt_path '{checkpoint}' is no checkpoint of this project; "
            "weights of other repositories are given as --model.checkpoint FILE"
        )
    cli.model.on_load_checkpoint(weights)  # a model around a task puts the task's names in its place
    problems = misfits(cli.model, weights["state_dict"])
    if problems:
        raise SystemExit(f"--ckpt_path '{checkpoint}' is of another network than the configuration's: {problems}")
    cli.model.load_state_dict(weights["state_dict"])
    return cli


def misfits(model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """How many tensors a model lacks, has too many or has in another shape, with the first of each; "" if none."""
    own = model.state_dict()
    kinds = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [name for name in own if name in weights and own[name].shape != weights[name].shape],
    }
    return "; ".join(f"{len(names)} tensors {kind} (first: {names[0]})" for kind, names in kinds.items() if names)
