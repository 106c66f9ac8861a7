"""Methods that explain a network's inputs themselves, pixel by pixel, not the tokens of its attention."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from lightning_xai.explain.method import Method
from lightning_xai.explain.pixel_maps import padding_of, pooled
from lightning_xai.explain.recording import Recording
from lightning_xai.explain.streams import ChosenPatches, FeatureLevels, Patches, Stream, Words
from lightning_xai.explain.targets import Targets


class InputMethod(Method):
    """A way to relevance of every element of an input, of which pixels and tokens have the sums.

    Tokens that stand for no part of the image (class tokens, registers) have 0, unless the network's input is tokens.
    Of several feature levels the finest has all. Where the network is given a boolean mask (B, h, w) of the image's
    padding, that has 0.
    """

    @abstractmethod
    def attributed(self, recording: Recording, targets: Targets, given: Tensor) -> Tensor:
        """Relevance (T, ...) of the elements of one of the network's inputs (B, ...)."""

    def inputs(self, recording: Recording) -> Sequence[Tensor]:
        """The network's floating-point inputs, as `attributed` takes them."""
        return recording.call.floating_inputs()

    def words(self, recording: Recording) -> Sequence[Tensor]:
        """The embedded words (B, N, C) among them."""
        return ()

    def pixels(self, recording: Recording, targets: Targets) -> Tensor:
        """Relevance (T, h, w) of each pixel, signed, summed over channels."""
        images = [x for x in self.inputs(recording) if x.dim() == 4]
        if len(images) != 1:
            raise ValueError(f"the network has {len(images)} inputs of shape (B, C, h, w), expected one image input")
        found = self.attributed(recording, targets, images[0]).sum(1)
        padding = padding_of(recording, images[0])
        return found if padding is None else found.masked_fill(padding[targets.samples], 0)

    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        return self.with_pixels(recording, targets)[0]

    def with_pixels(self, recording: Recording, targets: Targets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        result: dict[str, Tensor] = {}
        pixels: dict[str, Tensor] = {}
        for name, stream in recording.streams.items():
            tokens = self._input_tokens(recording, stream)
            if tokens is not None:
                result[name] = self.attributed(recording, targets, tokens).sum(-1)
            elif isinstance(stream.layout, Patches | FeatureLevels | ChosenPatches):
                pixels[name] = self.pixels(recording, targets)
                result[name] = pooled(pixels[name], stream.layout, targets.samples)
        if not result:
            kinds = ", ".join(type(stream.layout).__name__ for stream in recording.streams.values())
            raise ValueError(f"the network's streams ({kinds}) lie on no input that {type(self).__name__} explains")
        return result, pixels

    def _input_tokens(self, recording: Recording, stream: Stream) -> Tensor | None:
        """The input that holds a stream's tokens (B, N, C) as they are, where there is one."""
        if isinstance(stream.layout, Words):
            return next(iter(self.words(recording)), None)
        if isinstance(stream.layout, Patches):
            count = stream.layout.prefix + stream.layout.shape[0] * stream.layout.shape[1]
            return next((x for x in self.inputs(recording) if x.dim() == 3 and x.shape[1] == count), None)
        return None
