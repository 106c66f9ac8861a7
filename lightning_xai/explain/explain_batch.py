"""Several methods on one batch of an explainable task, with as few forward passes as they allow."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai.explain.explainable import Explainable, Explained
from lightning_xai.explain.explanation import Explanation, explained_by
from lightning_xai.explain.method import Method, Needs
from lightning_xai.explain.methods import method as method_named
from lightning_xai.explain.recording import Recording
from lightning_xai.explain.seam import declaring_network

Recorder = Callable[[nn.Module], AbstractContextManager[Recording]]


@dataclass(frozen=True)
class BatchExplanations:
    """What several methods say about one batch.

    outputs: of the network, without graph. explained: what is explained, None where the batch has no target.
    by_method: the explanation by each method, empty where there is no target. without: why there is none.
    """

    outputs: Any
    explained: Explained | None
    by_method: dict[str, Explanation]
    without: str = ""


def explain_batch(
    task: Explainable,
    batch: Mapping[str, Any],
    methods: Mapping[str, Method],
    choice: str = "predicted",
    limit: int | None = None,
    keep: Callable[[Explained], Explained] | None = None,
) -> BatchExplanations:
    """Explain what `task` is asked to explain of a batch by each of `methods`.

    choice, limit: see `Explainable`. keep: takes some of these targets. Methods that record alike share one forward
    pass. Raises ValueError for a choice that the task does not have; a batch without targets is no error.
    """
    # autograd may keep no tensor that was made in inference mode, be it of the batch or of the way to an explanation
    with torch.inference_mode(False), torch.no_grad():
        return _explain_batch(task, outside_inference(batch), methods, choice, limit, keep)


def _explain_batch(task, batch, methods, choice, limit, keep) -> BatchExplanations:
    inputs = task.prepare(batch)
    net = declaring_network(task.net)
    intervention = getattr(task, "intervention", None)
    outputs, explained = None, None
    found: dict[str, Explanation] = {}
    for recorded, group in recorded_together(methods):
        with recorded(net) as recording:
            with nullcontext() if intervention is None else intervention.applied(net):
                outputs = net(*inputs)
            try:
                explained = task.explained(outputs, batch, choice, limit)
                explained = explained if keep is None else keep(explained)
            except LookupError as error:
                return BatchExplanations(_detached(outputs), None, {}, str(error))
        targets = explained.targets
        for name, method in group.items():
            found[name] = explained_by(method, recording, targets)
    targets = replace(explained.targets, scores=explained.targets.scores.detach())
    explained = replace(explained, targets=targets)
    return BatchExplanations(_detached(outputs), explained, {name: found[name] for name in methods})


def methods_by_name(methods: Sequence[str] | Mapping[str, Mapping[str, Any] | None]) -> dict[str, Method]:
    """Methods as a configuration states them: names, or own names with options and the method that each stands for.

    For instance {"ours": {"method": "generic_relevance", "normalise": False}, "random": {}}.
    Raises ValueError for a method or an option that there is not, and for none at all.
    """
    if not methods:
        raise ValueError("methods is empty: name at least one explanation method, e.g. generic_relevance")
    if not isinstance(methods, Mapping):
        methods = dict.fromkeys(methods)
    found = {}
    for name, options in methods.items():
        given = {"method": name, **(options or {})}
        found[name] = method_named(given.pop("method"), **given)
    return found


def recorded_together(methods: Mapping[str, Method]) -> Iterator[tuple[Recorder, dict[str, Method]]]:
    """Groups of methods that can read one recording, and what makes it; who records in a way of its own is alone."""
    shared: list[tuple[Needs, dict[str, Method]]] = []
    for name, method in methods.items():
        if type(method).recorded is not Method.recorded:
            yield method.recorded, {name: method}
            continue
        for i, (needs, group) in enumerate(shared):
            both = needs.either(method.needs)
            if both is not None:
                shared[i] = (both, {**group, name: method})
                break
        else:
            shared.append((method.needs, {name: method}))
    for needs, group in shared:
        yield needs.recorded, group


def outside_inference(batch: Any) -> Any:
    """The batch with copies of the tensors that were made in inference mode; autograd may keep those."""
    with torch.inference_mode(False):
        return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.clone() if t.is_inference() else t, batch)


def _detached(outputs: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, Tensor.detach, outputs)
