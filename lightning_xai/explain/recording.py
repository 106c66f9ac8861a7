"""What one forward pass did at a network's attention sites, and the gradients of what is explained there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from lightning_xai.explain.attention_record import AttentionRecord, DeformableRecord
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
_NUMBERS_AT_ONCE = {"cpu": 2**20}
_NUMBERS_AT_ONCE_ELSEWHERE = 2**26


class _Tap(torch.autograd.Function):
    """The identity on attention weights; the gradient that passes is shown to `arrive`.

    The anchor makes every tap, and nothing before the first, lie on the way to one leaf of the graph.
    """

    @staticmethod
    def forward(ctx, weights: Tensor, anchor: Tensor, arrive: Callable[[Tensor], None]) -> Tensor:
        ctx.arrive = arrive
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        ctx.arrive(gradient)
        return gradient, gradient.new_zeros((), dtype=torch.float32), None


class Recording(Mapping[str, Record]):
    """The records of one forward pass by module name, in the order in which the network declares its sites."""

    def __init__(self, net: nn.Module, sites: Sequence[Site]):
        self.sites = list(sites)
        self._net = net
        self._records: dict[str, list[Record]] = {site.module: [] for site in sites}
        self._streams: dict[str, Stream] | None = None
        self._anchor: Tensor | None = None
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
                f"{type(declaring_network(self._net)).__name__} did not say where its tokens lie: "
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
        no further than the first site. at_once: how many targets of a sample share a vectorised pass, in which `reduce`
        sees one target at a time and may use torch's functions only; by default as many as fit, and one where a site is
        deformable. modules: the sites wanted, by default all.
        Raises RuntimeError where the forward pass left no graph.
        """
        wanted = list(self) if modules is None else list(modules)
        records = {module: self[module] for module in wanted}
        if self._anchor is None:
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
            passes = -(-rounds // self._targets_at_once())
            at_once = -(-rounds // passes)  # passes of about the same size
        cotangents = torch.zeros(rounds, len(turns), dtype=targets.scores.dtype, device=targets.scores.device)
        cotangents[turns, torch.arange(len(turns), device=turns.device)] = 1

        def vjp(cotangent: Tensor) -> tuple[Tensor, ...]:
            arrived: dict[str, Tensor] = {}

            def arrive(module: str, gradient: Tensor) -> None:
                if module in records:
                    arrived[module] = reduce(records[module], gradient)

            self._arrive = arrive
            try:
                torch.autograd.grad(targets.scores, self._anchor, cotangent, retain_graph=True, allow_unused=True)
            finally:
                self._arrive = None
            for module in wanted:
                if module not in arrived:  # the scores do not depend on this site
                    arrived[module] = reduce(records[module], torch.zeros_like(records[module].weights))
            return tuple(arrived[module] for module in wanted)

        found: dict[str, list[Tensor]] = {module: [] for module in wanted}
        order = []
        # Checkpointed layers run again in the backward pass, and must then run as they ran while they were recorded.
        with torch.inference_mode(False), attention_calls(self._net, self.sites, self._handle):
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

    def _targets_at_once(self) -> int:
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

    def _keep(self, record: Record) -> None:
        if not self._recorded:
            self._records[record.site.module].append(record)

    def _tapped(self, site: Site, weights: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return weights
        if self._anchor is None:
            self._anchor = torch.zeros((), device=weights.device, requires_grad=True)

        def arrive(gradient: Tensor) -> None:
            if self._arrive is not None:
                self._arrive(site.module, gradient)

        return _Tap.apply(weights, self._anchor, arrive)

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
def record(net: nn.Module, gradients: bool | None = None) -> Iterator[Recording]:
    """Record every declared attention site in the one forward pass made inside the context.

    gradients: None records on a graph if the caller does, and that graph goes back to the inputs. True always does,
    under no_grad and inference_mode too: the graph begins at the first site, and grad mode stays on until the context
    ends, so that the targets' scores are computed in it. False makes no graph. Where parts of the network are
    checkpointed and the caller differentiates by itself, that has to happen inside the context: what is computed again
    must be what was recorded.
    The network is not changed and nothing stays behind: no hook, no function mode, no gradient, no random number drawn.
    Raises RuntimeError at the end when a declared site recorded nothing, ValueError where no site is declared.
    """
    inner = declaring_network(net)
    recording = Recording(net, inner.sites())
    if not recording.sites:
        raise ValueError(f"{type(inner).__name__} declares no attention site, so there is nothing to record")
    with ExitStack() as undo:
        if gradients:
            undo.enter_context(_graph_from_first_site(net, recording.sites))
        elif gradients is False:
            undo.enter_context(torch.no_grad())
        undo.enter_context(_without_reduction(net))
        if hasattr(inner, "streams"):

            def lay_out(module, inputs, outputs):
                recording._streams = module.streams(outputs)

            undo.callback(inner.register_forward_hook(lay_out).remove)
        undo.enter_context(attention_calls(net, recording.sites, recording._handle))
        yield recording
    recording._finish()


@contextmanager
def _without_reduction(net: nn.Module) -> Iterator[None]:
    """Parallel wrappers between `net` and the declaring network expect no backward pass of the forward made here."""
    with ExitStack() as undo:
        while not hasattr(type(net), "sites"):
            if hasattr(net, "no_sync"):
                undo.enter_context(net.no_sync())
            net = net._modules.get("_orig_mod", net._modules.get("module"))
        yield


@contextmanager
def _graph_from_first_site(net: nn.Module, sites: Sequence[Site]) -> Iterator[None]:
    """Grad mode, off until the first site runs and on from then; works inside no_grad and inference_mode."""
    inner = declaring_network(net)
    with ExitStack() as undo:
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.set_grad_enabled(False))
        # Weights that autocast casts before the first site would stay in its cache, without a graph, for the caller.
        undo.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)

        def usable(module, args, kwargs):
            return torch.utils._pytree.tree_map_only(Tensor, _normal, (args, kwargs))

        def switch_on(module, inputs):
            torch.set_grad_enabled(True)

        undo.callback(net.register_forward_pre_hook(usable, with_kwargs=True).remove)
        for site in sites:
            undo.callback(inner.get_submodule(site.module).register_forward_pre_hook(switch_on).remove)
        yield


def _normal(tensor: Tensor) -> Tensor:
    """A tensor that autograd may save: made under inference_mode it cannot, but its clone can."""
    return tensor.clone() if tensor.is_inference() else tensor
