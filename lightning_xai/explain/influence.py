"""Which tokens what is read can depend on, given what masks hide from attention."""

from collections.abc import Mapping

from torch import Tensor

from lightning_xai.explain.linear_maps import row_weights
from lightning_xai.explain.recording import Recording


def influencing_tokens(
    recording: Recording, rows: Mapping[str, Tensor], samples: Tensor, across: bool = False
) -> dict[str, Tensor]:
    """The tokens that the read rows can depend on: {stream: (T, N)}, True where there is a way through the attentions.

    False are the padding and, where attention is causal, what comes after the token that is read. rows, samples: as of
    `Targets`. across: also of the streams that the read ones attend to, which otherwise are left out.
    """
    found = {stream: row_weights(read, recording.count(stream)) != 0 for stream, read in rows.items()}
    for site in reversed(recording.sites):
        writer = found.get(site.writes)
        if writer is None or (site.writes != site.reads and not across):
            continue
        if site.reads in found and found[site.reads].all():
            continue
        reached = recording[site.module].read_by(writer, samples)
        found[site.reads] = found[site.reads] | reached if site.reads in found else reached
    return found
