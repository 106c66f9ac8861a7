"""Relevance that arrives at the recorded attention weights, alone or together with their gradient."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_xai.explain.recording import Record, Recording, record
from lightning_xai.explain.relevance_rules import relevance_pass, relevance_rules
from lightning_xai.explain.relevance_tables import TABLES
from lightning_xai.explain.targets import Targets


@contextmanager
def ruled_recording(net: nn.Module, rules: str, down_to: Literal["sites", "inputs"] = "sites") -> Iterator[Recording]:
    """Record the forward pass made inside the context under the rule table called `rules`.

    The recording's attribute `ruled` holds the network's inputs on the graph (see `relevance_rules`).
    Raises ValueError for an unknown table.
    """
    if rules not in TABLES:
        raise ValueError(f"there are no relevance rules {rules!r}; there are {', '.join(TABLES)}")
    with relevance_rules(net, TABLES[rules], down_to) as ruled, record(net) as recording:
        recording.ruled = ruled
        yield recording


def reduced_relevances(
    recording: Recording,
    targets: Targets,
    reduce: Callable[[Record, Tensor], Tensor],
    modules: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """reduce(record, C) of every target at every site, C the relevance at the weights: {module: (T, ...)}.

    C has the shape of `record.weights` with one sample, the target's; relevance starts as 1 at the target's score.
    The rules divide by sums over whole tensors, so each target has a pass of its own and its relevance does not depend
    on the rest of the batch. Raises RuntimeError when the recording was not made under rules.
    """
    return reduced_gradients_and_relevances(recording, targets, lambda record, _, c: reduce(record, c), modules, False)


def reduced_gradients_and_relevances(
    recording: Recording,
    targets: Targets,
    reduce: Callable[[Record, Tensor | None, Tensor], Tensor],
    modules: Sequence[str] | None = None,
    gradients: bool = True,
) -> dict[str, Tensor]:
    """reduce(record, G, C) of every target at every site: {module: (T, ...)}.

    G is the gradient of the target's score and C its relevance at the weights, of one sample: (1, ...). Both passes go
    through the same recorded forward pass. Without `gradients`, G is None.
    """
    found: dict[str, list[Tensor]] = {}
    for index in range(len(targets)):
        target = one_target(targets, index)
        with relevance_pass():
            relevances = recording.reduced_gradients(target, lambda record, arrived: arrived, modules)
        slopes = recording.reduced_gradients(target, lambda record, arrived: arrived, modules) if gradients else {}
        for module, relevance in relevances.items():
            reduced = reduce(recording[module], slopes.pop(module, None), relevance)
            found.setdefault(module, []).append(reduced)
    return {module: torch.cat(parts) for module, parts in found.items()}


def one_target(targets: Targets, index: int) -> Targets:
    """The target number `index` alone."""
    rows = {stream: tokens[index : index + 1] for stream, tokens in targets.rows.items()}
    with torch.inference_mode(False), torch.enable_grad():
        return Targets(targets.scores[index : index + 1], targets.samples[index : index + 1], rows)


def positive_relevance(record: Record, gradient: Tensor | None, relevance: Tensor) -> Tensor:
    """relu(C), averaged over the heads of a dense site: (1, Q, K), or (1, Q, H, L, P)."""
    return head_mean(record, relevance.clamp(min=0))


def positive_gradient_relevance(record: Record, gradient: Tensor, relevance: Tensor) -> Tensor:
    """relu(G * C), averaged over the heads of a dense site: (1, Q, K), or (1, Q, H, L, P)."""
    return head_mean(record, (gradient * relevance).clamp(min=0))


def head_mean(record: Record, weights: Tensor) -> Tensor:
    """The mean over heads of a dense site's weights; a deformable one keeps its heads, which sample at other places."""
    return weights.mean(1) if record.site.kind == "dense" else weights
