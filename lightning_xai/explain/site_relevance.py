"""Relevance that arrives at the recorded attention weights, alone or together with their gradient."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_xai.explain.recording import Record, Recording, record
from lightning_xai.explain.relevance_rules import SamplesMixedError, relevance_pass, relevance_rules
from lightning_xai.explain.relevance_tables import TABLES
from lightning_xai.explain.targets import Targets


@contextmanager
def ruled_recording(net: nn.Module, rules: str, down_to: Literal["sites", "inputs"] = "sites") -> Iterator[Recording]:
    """Record the forward pass made inside the context under the rule table called `rules`.

    The recording's attribute `ruled` is what `relevance_rules` gives.
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

    C has the shape of `record.weights`, with targets t for samples; relevance starts as 1 at the target's score and
    does not depend on the rest of the batch. Raises RuntimeError when the recording was not made under rules.
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

    G is the gradient of the target's score and C its relevance at the weights, (t, ...) of some targets. Both passes
    go through the same recorded forward pass. Without `gradients`, G is None.
    """

    def passed(share: Targets) -> dict[str, Tensor]:
        with relevance_pass():
            relevances = recording.reduced_gradients(share, _as_it_is, modules)
        slopes = recording.reduced_gradients(share, _as_it_is, modules) if gradients else {}
        return {m: reduce(recording[m], slopes.pop(m, None), relevance) for m, relevance in relevances.items()}

    return passed_together(recording, targets, passed, recording.targets_at_once())


@torch.inference_mode(False)
def passed_together(
    recording: Recording, targets: Targets, passed: Callable[[Targets], dict[str, Tensor]], at_once: int = 1
) -> dict[str, Tensor]:
    """passed(targets) of groups of targets whose relevance can be passed at once, put together: {name: (T, ...)}.

    Many rules divide by sums over all of a sample. So the j-th targets of all samples share a group, for `at_once`
    values of j, where the rules can tell the samples apart; else each target is alone.
    """
    whole, turns = recording.ruled, targets.turns()
    if whole is None:
        raise RuntimeError("the forward pass was not recorded under rules: use ruled_recording, see relevance_rules")
    batches = {len(record.weights) for record in recording.values()}
    if whole.separable and len(batches) == 1:
        groups = [((turns // at_once) == number).nonzero()[:, 0] for number in range(int(turns.max()) // at_once + 1)]
        whole.batch = batches.pop()
        try:
            return _in_order(groups, [passed(some_targets(targets, group)) for group in groups])
        except SamplesMixedError:
            whole.separable = False
        finally:
            whole.batch = None
    groups = list(torch.arange(len(targets), device=turns.device)[:, None])
    return _in_order(groups, [passed(some_targets(targets, group)) for group in groups])


def _in_order(groups: Sequence[Tensor], parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    place = torch.cat(list(groups)).argsort()
    return {name: torch.cat([part[name] for part in parts])[place] for name in parts[0]}


def _as_it_is(record: Record, arrived: Tensor) -> Tensor:
    return arrived


def some_targets(targets: Targets, chosen: Tensor) -> Targets:
    """The targets number `chosen` alone."""
    rows = {stream: rows[chosen] for stream, rows in targets.rows.items()}
    with torch.enable_grad():
        return Targets(targets.scores[chosen], targets.samples[chosen], rows)


def positive_relevance(record: Record, gradient: Tensor | None, relevance: Tensor) -> Tensor:
    """relu(C), averaged over the heads of a dense site: (1, Q, K), or (1, Q, H, L, P)."""
    return record.over_heads(relevance.clamp(min=0))


def positive_gradient_relevance(record: Record, gradient: Tensor, relevance: Tensor) -> Tensor:
    """relu(G * C), averaged over the heads of a dense site: (1, Q, K), or (1, Q, H, L, P)."""
    return record.over_heads((gradient * relevance).clamp(min=0))
