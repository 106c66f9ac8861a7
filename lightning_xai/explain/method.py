"""What every explanation method offers, and how the forward pass that it explains is recorded."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from lightning_xai.explain.evaluation_mode import evaluation_mode
from lightning_xai.explain.linear_gradients import linear_maps_of_inputs
from lightning_xai.explain.recording import Recording, record
from lightning_xai.explain.site_relevance import ruled_recording
from lightning_xai.explain.targets import Targets


@dataclass(frozen=True)
class Needs:
    """What a method needs of a recording; methods can share one that serves them all.

    gradients: a graph from the first attention site on. rules: the table that relevance follows, which brings a graph;
    down_to: where that begins.
    """

    gradients: bool = True
    rules: str | None = None
    down_to: Literal["sites", "inputs"] = "sites"

    def either(self, other: "Needs") -> "Needs | None":
        """What serves both, None where one recording cannot."""
        if self.rules != other.rules:
            return None
        down_to = "inputs" if "inputs" in (self.down_to, other.down_to) else "sites"
        return Needs(self.gradients or other.gradients, self.rules, down_to)

    @contextmanager
    def recorded(self, net: nn.Module) -> Iterator[Recording]:
        """The context in which the forward pass that is to be explained runs.

        The network is in eval mode meanwhile, whatever mode it was in before, and draws no random number of the
        caller's. Its linear maps give no gradient to their weights, see `linear_maps_of_inputs`.
        """
        made = (
            record(net, gradients=self.gradients)
            if self.rules is None
            else ruled_recording(net, self.rules, self.down_to)
        )
        linear = linear_maps_of_inputs() if self.gradients and self.rules is None else nullcontext()
        with evaluation_mode(net), linear, made as recording:
            yield recording


class Method(ABC):
    """A way from a recording to relevances; its options are its fields."""

    needs_gradients: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:
        """What the recording must hold."""
        return Needs(gradients=self.needs_gradients)

    def recorded(self, net: nn.Module) -> AbstractContextManager[Recording]:
        """The context in which the forward pass that is to be explained runs, see `Needs.recorded`."""
        return self.needs.recorded(net)

    @abstractmethod
    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        """Relevance (T, N) of the tokens of every stream that the targets' rows can be explained by."""

    def with_pixels(self, recording: Recording, targets: Targets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The same, and by stream the relevance of each pixel (T, h, w) where the method finds that: {} of most."""
        return self(recording, targets), {}
