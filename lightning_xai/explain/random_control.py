"""Two controls that know nothing of the network: an explanation that does not beat them explains nothing."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_xai.explain.method import Method
from lightning_xai.explain.recording import Recording
from lightning_xai.explain.row_propagation import sources_of
from lightning_xai.explain.streams import FeatureLevels, Patches
from lightning_xai.explain.targets import Targets


@dataclass(frozen=True)
class RandomControl(Method):
    """Uniform random numbers in [0, 1) for every token of the streams that the read tokens are explained by: (T, N).

    Target number t has the same numbers for the same seed whatever the other targets; global random state stays.
    """

    needs_gradients: ClassVar[bool] = False
    seed: int = 0

    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        device = targets.samples.device
        result = {}
        for source in _explained(recording, targets):
            generator = torch.Generator().manual_seed(self.seed)
            count = _tokens(recording, source)
            result[source] = torch.rand(len(targets), count, generator=generator).to(device)
        return result


@dataclass(frozen=True)
class CentreControl(Method):
    """exp(-d^2 / (2 width^2)), d the distance of a token's cell from the image's centre, sides being 1: (T, N).

    Only streams that lie on the image have it; tokens before the grid have 0. With padding the centre is that of the
    image within its padded map. Raises ValueError where no stream lies on the image.
    """

    needs_gradients: ClassVar[bool] = False
    width: float = 0.25

    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        result = {}
        for source in _explained(recording, targets):
            layout = recording.streams[source].layout if source in recording.streams else None
            if isinstance(layout, Patches):
                grid = self._blob(layout.shape, torch.ones(1, 2)).expand(len(targets), -1)
                result[source] = torch.nn.functional.pad(grid, (layout.prefix, 0)).to(targets.samples.device)
            elif isinstance(layout, FeatureLevels):
                ratios = layout.valid_ratios
                if ratios is None:
                    ratios = torch.ones(int(targets.samples.max()) + 1, len(layout.shapes), 2)
                ratios = ratios[targets.samples].cpu().float()  # (T, L, 2)
                blobs = [self._blob(shape, ratios[:, level]) for level, shape in enumerate(layout.shapes)]
                result[source] = torch.cat(blobs, 1).to(targets.samples.device)
        if not result:
            raise ValueError(
                f"none of the streams {', '.join(_explained(recording, targets))} lies on the image; "
                "the centre control needs one that does"
            )
        return result

    def _blob(self, shape: tuple[int, int], valid: Tensor) -> Tensor:
        """The control on one grid, for each share (x, y) of valid (T, 2) that the image fills: (T, h * w)."""
        (h, w), (right, bottom) = shape, valid[:, :, None].unbind(1)
        y = (torch.arange(h) + 0.5) / h / bottom - 0.5  # (T, h)
        x = (torch.arange(w) + 0.5) / w / right - 0.5
        squared = y[:, :, None] ** 2 + x[:, None] ** 2
        return (-squared / (2 * self.width**2)).exp().flatten(1)


def _explained(recording: Recording, targets: Targets) -> list[str]:
    return list(dict.fromkeys(source for stream in targets.rows for source in sources_of(recording.sites, stream)))


def _tokens(recording: Recording, stream: str) -> int:
    """How many tokens a stream has."""
    for record in recording.values():
        if record.site.reads == stream:
            return record.read.shape[1]
        if record.site.writes == stream:
            return record.queries
    raise LookupError(f"no attention writes or reads the stream {stream!r}")
