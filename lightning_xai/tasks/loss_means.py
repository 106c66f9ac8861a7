"""Means of many losses over an epoch and between two log lines, kept in one tensor on the device."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from lightning_xai.tasks.detection_losses import Losses


class LossMeans:
    """Add up every step's losses with one addition; nothing leaves the device before somebody asks for means."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._sums: Tensor | None = None
        self._steps = 0
        self._restored: Mapping[str, Any] | None = None

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of an unfinished epoch: the sums of the process that writes it."""
        if self._sums is None:
            return None
        sums, weights = self._sums.tolist(), self._weights.tolist()
        return {"names": list(self._names), "weights": weights, "sums": sums, "steps": self._steps}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what `state` gave."""
        self.reset()
        if state is not None:
            self._restored = state

    def add(self, losses: Losses) -> None:
        values = losses.values.detach()
        if self._sums is None:
            self._names, self._weights, self._sums, self._logged = (
                losses.names,
                losses.weights,
                values.clone(),
                (0.0, 0),
            )
            if self._restored is not None and tuple(self._restored["names"]) == losses.names:
                self._sums += values.new_tensor(self._restored["sums"])
                self._steps = self._restored["steps"]
                self._logged = (values.new_tensor(self._restored["sums"]), self._steps)
        else:
            self._sums += values
        self._steps += 1

    def recent(self) -> dict[str, float]:
        """Means over the steps since the last call, of this process alone."""
        sums, steps = self._logged
        mean = (self._sums - sums) / (self._steps - steps)
        self._logged = (self._sums.clone(), self._steps)
        return named_means(self._names, self._weights.tolist(), mean.tolist())

    def epoch(self) -> dict[str, float]:
        """Means over all steps since the reset and over all processes; a collective call. Empty without steps."""
        own = None if self._sums is None else (self._names, self._weights.tolist(), self._sums.tolist(), self._steps)
        parts = [own]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, own)
        parts = [part for part in parts if part is not None]
        if not parts:
            return {}
        steps = sum(part[3] for part in parts)
        means = [sum(column) / steps for column in zip(*(part[2] for part in parts), strict=True)]
        return named_means(parts[0][0], parts[0][1], means)


def named_means(names: Sequence[str], weights: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Names as in the original's log: `loss` (the sum that is minimised), each part weighted, and `<name>_unscaled`."""
    means = {"loss": sum(weight * value for weight, value in zip(weights, values, strict=True))}
    for name, weight, value in zip(names, weights, values, strict=True):
        if name.startswith("loss_"):
            means[name] = weight * value
        elif name == "class_error":
            means[name] = value
        means[f"{name}_unscaled"] = value
    return means


def not_finite(losses: Losses) -> str:
    """The names of the losses that are NaN or infinite."""
    return ", ".join(
        name for name, fine in zip(losses.names, losses.values.isfinite().tolist(), strict=True) if not fine
    )
