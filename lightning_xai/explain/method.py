"""What every explanation method offers."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import ClassVar

from torch import Tensor, nn

from lightning_xai.explain.recording import Recording, record
from lightning_xai.explain.targets import Targets


class Method(ABC):
    """A way from a recording to relevances; its options are its fields.

    needs_gradients: whether the forward pass must be recorded on a graph.
    """

    needs_gradients: ClassVar[bool] = True

    def recorded(self, net: nn.Module) -> AbstractContextManager[Recording]:
        """The context in which the forward pass that is to be explained runs."""
        return record(net, gradients=self.needs_gradients)

    @abstractmethod
    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        """Relevance (T, N) of the tokens of every stream that the targets' rows can be explained by."""
