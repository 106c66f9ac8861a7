"""A configured task with trained weights, ready to be looked at."""

from pathlib import Path

import torch

from lightning_xai.cli.training import TASK_PLACES, TrainingCLI


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
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if "state_dict" not in weights:
        raise SystemExit(
            f"--ckpt_path '{checkpoint}' is no checkpoint of this project; "
            "weights of other repositories are given as --model.checkpoint FILE"
        )
    cli.model.on_load_checkpoint(weights)  # a model around a task puts the task's names in its place
    cli.model.load_state_dict(weights["state_dict"])
    return cli
