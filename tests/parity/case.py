"""A parity case: inputs and outputs that a reference implementation produced, and how close is close enough."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from recipe import make_state_dict
from torch import Tensor


class Case:
    """One folder `case.json`, `inputs.npz`, `outputs.npz`; collects every disagreement before it fails."""

    def __init__(self, folder: Path, name: str):
        self.folder = folder
        self.name = name
        self.info = json.loads((folder / "case.json").read_text())
        self.kind: str = self.info["kind"]
        self.config: dict = self.info["config"]
        self.failures: list[str] = []
        self.compared: set[str] = set()

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return self._read("inputs.npz")

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        return self._read("outputs.npz")

    def _read(self, file: str) -> dict[str, Tensor]:
        with np.load(self.folder / file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    def state_dict(self) -> dict[str, Tensor]:
        """The reference checkpoint, rebuilt from manifest and seed, scale factors and shared keys applied."""
        arrays = make_state_dict(self.info["manifest"], self.info["seed"])
        weights = {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}  # numbers come as scalars
        for prefix, factor in self.info.get("scale", {}).items():
            for key in weights:
                if key.startswith(prefix):
                    weights[key] = weights[key] * factor
        for alias, canonical in self.info.get("aliases", []):
            weights[alias] = weights[canonical]
        return weights

    def compare(self, name: str, ours: Tensor, where: Tensor | None = None, reference: Tensor | None = None) -> None:
        """Compare `ours` with output `name` (or `reference`) under the tolerance of `name`, only `where` is True."""
        self.compared.add(name)
        theirs = self.outputs[name] if reference is None else reference
        ours = torch.as_tensor(ours).detach()
        if tuple(ours.shape) != tuple(theirs.shape):
            self.failures.append(f"{name}: shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}")
            return
        if where is not None:
            ours, theirs = ours[where], theirs[where]
        if theirs.numel() == 0:
            return
        if not theirs.is_floating_point():
            wrong = (ours.to(theirs.dtype) != theirs).nonzero()
            if len(wrong):
                at = tuple(wrong[0].tolist())
                self.failures.append(f"{name}: {len(wrong)} integers differ, first at {at}: {ours[at]} != {theirs[at]}")
            return
        rule = self.info["tolerance"]["per_output"][name]
        allowed = rule.get("atol", 0.0) + rule.get("rtol", 0.0) * theirs.double().abs()
        error = (ours.double() - theirs.double()).abs()
        error = torch.where(ours.double() == theirs.double(), 0.0, error)  # equal infinities agree
        excess = torch.where(error.isnan(), torch.inf, error - allowed)
        if (excess > 0).any():
            flat = int(excess.argmax())
            at = tuple(int(i) for i in np.unravel_index(flat, tuple(error.shape))) if error.dim() else ()
            self.failures.append(
                f"{name}: error {error[at]:.3g} at {at} ({ours[at]:.6g} instead of {theirs[at]:.6g}), "
                f"allowed {allowed[at]:.3g}; {int((excess > 0).sum())} of {error.numel()} too large"
            )

    def finish(self) -> None:
        """Fail with every disagreement, or because an expected output was never compared."""
        forgotten = sorted(set(self.outputs) - self.compared)
        if forgotten:
            self.failures.append(f"outputs that the check did not compare: {', '.join(forgotten)}")
        if self.failures:
            raise AssertionError(f"{self.name} ({self.kind}):\n  " + "\n  ".join(self.failures))


def find_cases(folder: Path) -> Iterator[Case]:
    for file in sorted(folder.rglob("case.json")):
        yield Case(file.parent, str(file.parent.relative_to(folder)))
