"""Two controls that know nothing of the network: an explanation that does not beat them explains nothing."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from lightning_xai.explain.method import Method
from lightning_xai.explain.pixel_maps import padding_of
from lightning_xai.explain.recording import Recording
from lightning_xai.explain.row_propagation import sources_of
from lightning_xai.explain.streams import FeatureLevels, Patches
from lightning_xai.explain.targets import Targets


@dataclass(frozen=True)
class RandomControl(Method):
    """Uniform random numbers in [0, 1) for every token of the streams that the read tokens are explained by: (T, N).

    They follow from the seed, the sample's inputs, which of the sample's targets it is, and the token's place (on the
    image its row and column), so that neither the rest of the batch nor its padding changes them. Global random state
    stays.
    """

    needs_gradients: ClassVar[bool] = False
    seed: int = 0

    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        samples, turns = targets.samples.tolist(), targets.turns().tolist()
        digests = {sample: _digest(recording, sample) for sample in set(samples)}
        keys = [(self.seed, digests[sample], turn) for sample, turn in zip(samples, turns, strict=True)]
        result = {}
        for source in _explained(recording, targets):
            layout = recording.streams[source].layout if source in recording.streams else None
            numbers = [_numbers((*key, crc32(source.encode())), layout, recording.count(source)) for key in keys]
            result[source] = torch.tensor(np.stack(numbers), dtype=torch.float32, device=targets.samples.device)
        return result


def _numbers(key: tuple[int, ...], layout: object, count: int) -> np.ndarray:
    """Random numbers of `count` tokens, those of a grid row by row of it, each from the row's first column on."""
    shapes = [layout.shape] if isinstance(layout, Patches) else getattr(layout, "shapes", ())
    rows = [
        np.random.default_rng((*key, level, row)).random(w) for level, (h, w) in enumerate(shapes) for row in range(h)
    ]
    before = np.random.default_rng(key).random(count - sum(map(len, rows)))
    return np.concatenate([before, *rows])


def _digest(recording: Recording, sample: int) -> int:
    """A number that follows from a sample's inputs, padding left out."""
    digest = blake2b(digest_size=8)
    for tensor in recording.call.tensors():
        if tensor.dim() < 2 or sample >= len(tensor) or tensor.dtype == torch.bool:
            continue
        kept = tensor[sample]
        if tensor.dim() == 4 and (padding := padding_of(recording, tensor)) is not None:
            kept = kept[:, ~padding[sample]]
        digest.update(kept.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest(), "big")


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
