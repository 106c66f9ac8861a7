"""Input gradients and occlusion: methods that treat the network as a function of its pixels, computed by Captum."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_xai.explain.evaluation_mode import evaluation_mode
from lightning_xai.explain.input_method import InputMethod
from lightning_xai.explain.recording import Recording
from lightning_xai.explain.streams import FeatureLevels, Patches
from lightning_xai.explain.targets import Targets

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PixelFunction(InputMethod):
    """A method that asks the network again about changed inputs; words, which cannot change a little, have none.

    Each target of a sample is asked about by itself, the j-th targets of all samples together.
    Raises ImportError without Captum, ValueError for targets that do not say which of the outputs they are.
    """

    needs_gradients: ClassVar[bool] = False

    @abstractmethod
    def of(self, captum: ModuleType, function: Function, given: Tensor, recording: Recording) -> Tensor:
        """Attributions, in the shape of `given` (B, ...), of a function from such inputs to scores (B,)."""

    def attributed(self, recording: Recording, targets: Targets, given: Tensor) -> Tensor:
        captum = _captum()
        turns = targets.turns()
        found = [None] * len(targets)
        with _asked_again(recording):
            images = (given.clone() if given.is_inference() else given.detach()).requires_grad_()
            for turn in range(int(turns.max()) + 1):
                chosen = (turns == turn).nonzero()[:, 0]
                attributions = self.of(captum, _scores(recording, targets, chosen, given), images, recording).detach()
                for target in chosen.tolist():
                    found[target] = attributions[targets.samples[target]]
        return torch.stack(found)


@dataclass(frozen=True)
class GradientXInput(PixelFunction):
    """x dy/dx of every pixel's normalised value x, y the target's score, summed over channels: (T, N).

    Source: Shrikumar et al. 2016, arXiv 1605.01713.
    """

    def of(self, captum: ModuleType, function: Function, given: Tensor, recording: Recording) -> Tensor:
        return captum.InputXGradient(function).attribute(given)


@dataclass(frozen=True)
class IntegratedGradients(PixelFunction):
    """(x - b) times the mean of dy/dx on the line from the baseline b to x, summed over channels: (T, N).

    Over all pixels it sums to y(x) - y(b), up to the number of steps. baseline: the value of every pixel of b, after
    normalisation: 0 is the mean colour. steps: places on the line, Gauss-Legendre. It costs that many passes.
    Source: Sundararajan et al., ICML 2017.
    """

    baseline: float = 0.0
    steps: int = 32

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected at least 1")

    def of(self, captum: ModuleType, function: Function, given: Tensor, recording: Recording) -> Tensor:
        # as many samples at once as the batch has, since the network's other inputs belong to them
        return captum.IntegratedGradients(function).attribute(
            given, baselines=self.baseline, n_steps=self.steps, internal_batch_size=len(given)
        )


@dataclass(frozen=True)
class Occlusion(PixelFunction):
    """How much the target's score falls when a window is set to the baseline, shared among its pixels: (T, N).

    A pixel in several windows has the mean of its shares. window, stride: sides in pixels; by default a cell of the
    coarsest grid over the image, and the window. baseline: what is put in, after normalisation: 0 is the mean colour.
    It costs one pass for each window.
    Source: Zeiler and Fergus, ECCV 2014.
    """

    window: int | None = None
    stride: int | None = None
    baseline: float = 0.0

    def __post_init__(self):
        for name, size in (("window", self.window), ("stride", self.stride)):
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}, expected at least 1 pixel")

    def of(self, captum: ModuleType, function: Function, given: Tensor, recording: Recording) -> Tensor:
        if given.dim() == 3:  # tokens, each of which is a window
            window = stride = (1, given.shape[2])
        else:
            cell = (self.window,) * 2 if self.window else _coarsest_cell(recording, given)
            step = (self.stride,) * 2 if self.stride else cell
            window = (given.shape[1], *(min(side, size) for side, size in zip(cell, given.shape[2:], strict=True)))
            stride = (given.shape[1], *(min(a, b) for a, b in zip(step, window[1:], strict=True)))
        with torch.no_grad():
            found = captum.Occlusion(function).attribute(given.detach(), window, stride, baselines=self.baseline)
        return found.to(given.dtype) / math.prod(window)


def _captum() -> ModuleType:
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError(
            "integrated_gradients, gradient_x_input and occlusion are computed by Captum, which is not installed: "
            "pip install 'lightning_xai[captum]'"
        ) from error
    return captum.attr


@contextmanager
def _asked_again(recording: Recording) -> Iterator[None]:
    """The network as it was recorded, in full precision, ready for gradients with respect to its inputs."""
    device = recording.call.outputs[0].device.type
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device, enabled=False),
        torch.compiler.set_stance("force_eager"),
        evaluation_mode(recording.net),
    ):
        yield


def _scores(recording: Recording, targets: Targets, chosen: Tensor, given: Tensor) -> Function:
    """From an input in the place of `given` to the scores of the chosen targets, each at its sample: (B,)."""
    call, picked = recording.call, targets.picked
    places = [] if picked is None else [i for i, x in enumerate(call.outputs) if _same(x, picked.outputs)]
    if not places:
        raise ValueError(
            "the targets do not say which of the network's outputs their scores are, so it cannot be asked again: make "
            "them by class_targets, detection_targets, pair_targets or picked_targets of one of its output tensors"
        )
    samples, at = targets.samples[chosen], tuple(index[chosen] for index in picked.at)

    def function(changed: Tensor) -> Tensor:
        args, kwargs = tree_map(
            lambda leaf: changed if leaf is given else _normal(leaf), (call.args, dict(call.kwargs))
        )
        outputs = [x for x in tree_leaves(recording.net(*args, **kwargs)) if isinstance(x, Tensor)]
        scores = outputs[places[0]][at]
        return scores.new_zeros(len(changed)).index_put((samples,), scores)

    return function


def _normal(leaf: object) -> object:
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in memory."""
    return (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())


def _coarsest_cell(recording: Recording, images: Tensor) -> tuple[int, int]:
    layouts = [stream.layout for stream in recording.streams.values()]
    shapes = [shape for layout in layouts if isinstance(layout, FeatureLevels) for shape in layout.shapes]
    shapes += [layout.shape for layout in layouts if isinstance(layout, Patches)]
    rows, columns = min(shapes, key=lambda shape: shape[0] * shape[1])
    return -(-images.shape[2] // rows), -(-images.shape[3] // columns)
