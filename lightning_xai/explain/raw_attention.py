"""Raw attention: what the token that is read out attended to."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_xai.explain.method import Method
from lightning_xai.explain.recording import Record, Recording
from lightning_xai.explain.row_propagation import sources_of
from lightning_xai.explain.targets import Targets


def chosen_records(recording: Recording, stream: str, source: str, layer: int | str) -> list[Record]:
    """The records that write `stream` and read `source`: that of one layer (negative from the end), or "mean" for all.

    Raises ValueError for a layer that does not exist.
    """
    records = recording.of(stream, source)
    if layer == "mean":
        return records
    if not isinstance(layer, int) or not -len(records) <= layer < len(records):
        raise ValueError(
            f"layer is {layer!r}, but {stream} reads {source} in layers 0 to {len(records) - 1}; name one or 'mean'"
        )
    return [records[layer]]


@dataclass(frozen=True)
class RawAttention(Method):
    """mean over heads of A, the row of the token that is read out, for every stream that it reads: (T, N).

    layer: which of the attentions between two streams, negative from the last, or "mean" for the mean over all of them.
    Raises ValueError for a layer that does not exist.
    """

    needs_gradients: ClassVar[bool] = False
    layer: int | Literal["mean"] = -1

    def __call__(self, recording: Recording, targets: Targets) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for stream, tokens in targets.rows.items():
            for source in sources_of(recording.sites, stream):
                if not recording.of(stream, source):
                    continue
                records = chosen_records(recording, stream, source, self.layer)
                rows = [record.averaged(samples=targets.samples).rows(tokens) for record in records]
                result[source] = torch.stack(rows).mean(0) + result.get(source, 0)
        return result
