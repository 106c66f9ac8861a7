"""What one forward pass did at a network's attention sites, and the gradients of what is explained there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_xai.explain.attention_record import AttentionRecord, DeformableRecord
from lightning_xai.explain.evaluation_mode import in_modes
from lightning_xai.explain.graph_from_sites import graph_from_first_site, without_reduction
from lightning_xai.explain.seam import (
    AttentionCall,
    DeformableAttentionCall,
    attention_calls,
    declaring_network,
)
from lightning_xai.explain.streams import Site, Stream
from lightning_xai.explain.targets import Targets

__all__ = ["AttentionRecord", "DeformableRecord", "Record", "Recording", "record"]

Record = AttentionRecord | DeformableRecord
Reduction = Callable[[Record, Tensor], Tensor]

# As many targets share a vectorised backward pass as keep the gradient of one site below so many numbers: a CPU wants
# what it works on in its cache (measured on DETR), other devices want few and large operations.
_NUMBERS_AT_ONCE = {"cpu": 2**21}
_NUMBERS_AT_ONCE_ELSEWHERE = 2**26


class _Tap(torch.autograd.Function):
    """The identity on attention weights; the gradient that passes is shown to `arrive`.

    The anchor, a leaf of the graph, makes a tap lie on the way to it: a backward pass to the anchors of the sites that
    are wanted goes no further than these.
    """

    @staticmethod
    def forward(weights: Tensor, anchor: Tensor, arrive: Callable[[Tensor], None]) -> Tensor:
        return weights.view_as(weights)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.arrive = inputs[2]

    @staticmethod
    def vmap(info, in_dims: tuple, *inputs):
        """Met where a checkpointed site runs again within a vectorised backward pass: no input of it is batched."""
        return _Tap.apply(*inputs), in_dims[0]

    @staticmethod
    def backward(ctx, gradient: Tensor):
        ctx.arrive(gradient)
        return gradient, gradient.new_zeros((), dtype=torch.float32), None


@dataclass(frozen=True)
class RecordedCall:
    """How the network was called and what it gave, all of it off the graph; outputs: the tensors among its results.

    training: the mode that each module was in.
    """

    args: tuple
    kwargs: Mapping[str, Any]
    outputs: Sequence[Tensor]
    training: Mapping[nn.Module, bool]

    def tensors(self) -> list[Tensor]:
        """The network's inputs that are tensors."""
        return [leaf for leaf in tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Tensor)]

    def floating_inputs(self) -> list[Tensor]:
        """Those of them that hold real numbers."""
        return [tensor for tensor in self.tensors() if tensor.is_floating_point()]


class Recording(Mapping[str, Record]):
    """The records of one forward pass by module name, in the order in which the network declares its sites.

    tokens: where features were asked for, the tokens (B, N, C) of the written stream as each site's module receives
    them, by module name. call: how the network was called. ruled: what relevance rules left, where it ran under any.
    """

    def __init__(self, net: nn.Module, sites: Sequence[Site]):
        self.sites = list(sites)
        self.net = declaring_network(net)
        self._records: dict[str, list[Record]] = {site.module: [] for site in self.sites}
        self.tokens: dict[str, Tensor] = {}
        self.call: RecordedCall | None = None
        self.ruled: Any = None
        self._streams: dict[str, Stream] | None = None
        self._anchors: dict[str, Tensor] = {}  # of each site, a leaf of the graph that its gradient goes to
        self._recorded = False
        self._arrive: Callable[[str, Tensor], None] | None = None

    def __getitem__(self, module: str) -> Record:
        if module not in self._records:
            raise KeyError(f"no site {module!r}; the recorded sites are {', '.join(self._records)}")
        records = self._records[module]
        if len(records) != 1:
            raise LookupError(f"site {module!r} was called {len(records)} times; record one forward pass at a time")
        return records[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def streams(self) -> dict[str, Stream]:
        """Where the tokens of the recorded pass lie, as the network says."""
        if self._streams is None:
            raise LookupError(
                f"{type(self.net).__name__} did not say where its tokens lie: "
                "give it a method streams(outputs) and run its forward inside the recording"
            )
        return self._streams

    def at(self, part: str, layer: int, reads: str | None = None) -> Record:
        """The record of layer `layer` of part `part`; negative layers count from the last.

        Of a layer with several sites it is the last one, the cross-attention of a decoder, or that which reads `reads`.
        """
        sites = [site for site in self.sites if site.part == part and reads in (None, site.reads)]
        if not sites:
            of = "" if reads is None else f" that reads {reads!r}"
            raise LookupError(f"no part {part!r}{of}; the recorded parts are {', '.join(self.parts())}")
        layers = list(dict.fromkeys(site.layer for site in sites))
        if not -len(layers) <= layer < len(layers):
            raise LookupError(f"no layer {layer} in the {part}; it has layers 0 to {len(layers) - 1}")
        return self[[site for site in sites if site.layer == layers[layer]][-1].module]

    def parts(self) -> dict[str, int]:
        """The recorded parts and how many layers each has."""
        layers: dict[str, set[int]] = {}
        for site in self.sites:
            layers.setdefault(site.part, set()).add(site.layer)
        return {part: len(numbers) for part, numbers in layers.items()}

    def count(self, stream: str) -> int:
        """How many tokens a stream has. Raises LookupError for a stream that no site writes or reads."""
        for record in self.values():
            if record.site.writes == stream:
                return record.queries
            if record.site.reads == stream:
                return record.read.shape[1]
        known = dict.fromkeys(name for site in self.sites for name in (site.writes, site.reads))
        raise LookupError(
            f"no attention writes or reads the stream {stream!r}; the recorded ones are {', '.join(known)}"
        )

    def of(self, writes: str, reads: str) -> list[Record]:
        """The records of the sites that write and read these streams, in order of execution."""
        return [self[site.module] for site in self.sites if (site.writes, site.reads) == (writes, reads)]

    def reduced_gradients(
        self,
        targets: Targets,
        reduce: Reduction,
        modules: Sequence[str] | None = None,
        at_once: int | None = None,
    ) -> dict[str, Tensor]:
        """reduce(record, d score / d weights) of every target at every site: {module: (T, ...)}.

        The gradient (B, ...) has the shape of `record.weights` and is dropped as soon as `reduce` has made (B, ...) of
        it. Samples do not depend on each other, so the j-th targets of all samples share one backward pass, which goes
        no further than the sites. at_once: how many targets of a sample share a vectorised pass, in which `reduce`
        sees one target at a time and may use torch's functions only; by default as many as fit, and one where a site is
        deformable. modules: the sites wanted, by default all.
        Raises RuntimeError where the forward pass left no graph.
        """
        wanted = list(self) if modules is None else list(modules)
        records = {module: self[module] for module in wanted}
        if not self._anchors:
            raise RuntimeError(
                "the forward pass was recorded without gradients: use record(net, gradients=True), and compute the "
                "targets' scores inside it"
            )
        if not targets.scores.requires_grad:
            raise RuntimeError(
                "the targets' scores carry no gradient: compute them from the outputs inside record(net, "
                "gradients=True), without no_grad, detach or reentrant checkpointing"
            )
        turns = targets.turns()
        rounds = int(turns.max()) + 1
        if at_once is None:
            passes = -(-rounds // self.targets_at_once())
            at_once = -(-rounds // passes)  # passes of about the same size
        cotangents = torch.zeros(rounds, len(turns), dtype=targets.scores.dtype, device=targets.scores.device)
        cotangents[turns, torch.arange(len(turns), device=turns.device)] = 1

        def vjp(cotangent: Tensor) -> tuple[Tensor, ...]:
            arrived: dict[str, Tensor] = {}

            def arrive(module: str, gradient: Tensor) -> None:
                if module in records:
                    arrived[module] = reduce(records[module], gradient)

            anchors = [self._anchors[module] for module in wanted if module in self._anchors]
            self._arrive = arrive
            try:
                torch.autograd.grad(targets.scores, anchors, cotangent, retain_graph=True, allow_unused=True)
            finally:
                self._arrive = None
            if not arrived:
                self._require_way(targets)
            for module in wanted:
                if module not in arrived:  # the scores do not depend on this site
                    arrived[module] = reduce(records[module], torch.zeros_like(records[module].weights))
            return tuple(arrived[module] for module in wanted)

        found: dict[str, list[Tensor]] = {module: [] for module in wanted}
        order = []
        with self._as_recorded():
            for first in range(0, rounds, at_once):
                share = cotangents[first : first + at_once]
                if len(share) == 1:
                    reduced = [each[None] for each in vjp(share[0])]
                else:
                    reduced = torch.vmap(vjp)(share)
                chosen = ((turns >= first) & (turns < first + len(share))).nonzero()[:, 0]
                order.append(chosen)
                for module, each in zip(wanted, reduced, strict=True):
                    found[module].append(each[turns[chosen] - first, targets.samples[chosen]])
            if len(order) == 1:
                return {module: parts[0] for module, parts in found.items()}
            place = torch.cat(order).argsort()
            return {module: torch.cat(parts)[place] for module, parts in found.items()}

    def _require_way(self, targets: Targets) -> None:
        """Raise RuntimeError where no gradient of the scores reaches any site, so that zero is never taken for one."""
        anchors = list(self._anchors.values())
        found = torch.autograd.grad(targets.scores.sum(), anchors, retain_graph=True, allow_unused=True)
        if all(each is None for each in found):
            raise RuntimeError(
                "no gradient of the targets' scores reached an attention site: compute them from the outputs of the "
                "recorded pass, in a network that runs its sites without no_grad or reentrant checkpointing"
            )

    @contextmanager
    def _as_recorded(self) -> Iterator[None]:
        """Checkpointed layers run again in the backward pass, and must then run as they ran when they were recorded."""
        training = {} if self.call is None else self.call.training
        with (
            torch.inference_mode(False),
            torch.autocast(next(iter(self._anchors.values())).device.type, enabled=False),
            in_modes(training),
            attention_calls(self.net, self.sites, self._handle),
        ):
            yield

    def targets_at_once(self) -> int:
        """How many targets of a sample share a vectorised backward pass, for the sake of memory."""
        if any(site.kind == "deformable" for site in self.sites):
            return 1
        largest = max((record.weights for record in self.values()), key=Tensor.numel)
        return max(1, _NUMBERS_AT_ONCE.get(largest.device.type, _NUMBERS_AT_ONCE_ELSEWHERE) // largest.numel())

    def _handle(self, site: Site, call: AttentionCall) -> Tensor:
        """Compute a site's attention where its weights can be seen, and keep them if this is the recorded pass."""
        if isinstance(call, DeformableAttentionCall):
            if not torch.is_grad_enabled():
                output = call.run()
                self._keep(DeformableRecord.of(site, call.explicit()))
                return output
            call = call.explicit()
            self._keep(DeformableRecord.of(site, call))
            return call.with_weights(self._tapped(site, call.attention_weights)).run()
        probabilities = call.probabilities()
        self._keep(AttentionRecord(site, probabilities.detach()))
        return call.output(self._tapped(site, probabilities))

    def _see_call(self, net: nn.Module, args: tuple, kwargs: dict, outputs: Any) -> None:
        """What of the network's call holds for the whole pass."""
        if self._recorded:
            return
        if hasattr(net, "streams"):
            self._streams = net.streams(outputs)
        detached = tree_map_only(Tensor, Tensor.detach, (args, kwargs, outputs))
        tensors = [leaf for leaf in tree_leaves(detached[2]) if isinstance(leaf, Tensor)]
        self.call = RecordedCall(detached[0], detached[1], tensors, {m: m.training for m in net.modules()})

    def _see_tokens(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not self._recorded:
            tokens = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)).detach()
            first = isinstance(module, nn.MultiheadAttention) and not module.batch_first and tokens.dim() == 3
            self.tokens[name] = tokens.transpose(0, 1) if first else tokens

    def _keep(self, record: Record) -> None:
        if not self._recorded:
            self._records[record.site.module].append(record)

    def _tapped(self, site: Site, weights: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return weights
        if site.module not in self._anchors:
            self._anchors[site.module] = torch.zeros((), device=weights.device, requires_grad=True)

        def arrive(gradient: Tensor) -> None:
            if self._arrive is not None:
                self._arrive(site.module, gradient)

        return _Tap.apply(weights, self._anchors[site.module], arrive)

    def _finish(self) -> None:
        self._recorded = True
        silent = [module for module, records in self._records.items() if not records]
        if silent:
            raise RuntimeError(
                f"nothing was recorded at {', '.join(silent)}: run the network's forward inside the context; a dense "
                "site calls scaled_dot_product_attention, multi_head_attention_forward or a softmax over the keys, a "
                "deformable one ms_deform_attn.ms_deform_attn or ms_deform_attn_fused"
            )


@contextmanager
def record(net: nn.Module, gradients: bool | None = None, features: bool = False) -> Iterator[Recording]:
    """Record every declared attention site in the one forward pass made inside the context.

    gradients: None records on a graph if the caller does, and that graph goes back to the inputs. True always does,
    under no_grad and inference_mode too: the graph begins at the first site, and grad mode stays on until the context
    ends, so that the targets' scores are computed in it. False makes no graph. features: also keep the tokens that the
    sites receive (`recording.tokens`). Where parts of the network are checkpointed and the caller differentiates by
    itself, that has to happen inside the context: what is computed again must be what was recorded.
    The network is not changed and nothing stays behind: no hook, no function mode, no gradient, no random number drawn.
    Raises RuntimeError at the end when a declared site recorded nothing, ValueError where no site is declared.
    """
    inner = declaring_network(net)
    recording = Recording(net, inner.sites())
    if not recording.sites:
        raise ValueError(f"{type(inner).__name__} declares no attention site, so there is nothing to record")
    with ExitStack() as undo:
        if gradients:
            undo.enter_context(graph_from_first_site(net, recording.sites))
        elif gradients is False:
            undo.enter_context(torch.no_grad())
        undo.enter_context(without_reduction(net))
        undo.callback(inner.register_forward_hook(recording._see_call, with_kwargs=True).remove)
        if features:
            for site in recording.sites:
                see = partial(recording._see_tokens, site.module)
                undo.callback(inner.get_submodule(site.module).register_forward_pre_hook(see, with_kwargs=True).remove)
        # torch's fused encoder layers would compute whole layers, in nested tensors, and never call their attention
        undo.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        undo.enter_context(attention_calls(net, recording.sites, recording._handle))
        yield recording
    recording._finish()
