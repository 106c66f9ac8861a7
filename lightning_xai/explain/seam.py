"""Where recordings and interventions meet an unmodified network: the attention calls of its declared sites."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from ms_deform_attn import attention_weights, ms_deform_attn, ms_deform_attn_fused, sampling_locations
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_xai.explain.streams import Site


@dataclass(frozen=True)
class DeformableCall:
    """One call of the deformable operator.

    value: (B, K, H, C). shapes: (L, 2), rows of (h, w). sampling_locations: (B, Q, H, L, P, 2), (x, y) in [0, 1] of the
    padded map. attention_weights: (B, Q, H, L, P).
    """

    value: Tensor
    shapes: Tensor
    sampling_locations: Tensor
    attention_weights: Tensor

    def explicit(self) -> "DeformableCall":
        return self

    def with_weights(self, attention_weights: Tensor) -> "DeformableCall":
        return replace(self, attention_weights=attention_weights)

    def run(self) -> Tensor:
        """The operator's output (B, Q, H * C)."""
        return ms_deform_attn(self.value, self.shapes, self.sampling_locations, self.attention_weights)


@dataclass(frozen=True)
class FusedDeformableCall:
    """One call of the fused deformable operator, which computes locations and weights inside and does not keep them.

    value and shapes as above. reference_points: (B, Q, L, 2 | 4). sampling_offsets: (B, Q, H, L, P, 2).
    attention_logits: (B, Q, H, L, P).
    """

    value: Tensor
    shapes: Tensor
    reference_points: Tensor
    sampling_offsets: Tensor
    attention_logits: Tensor

    def explicit(self) -> DeformableCall:
        """The same call with its locations and weights, on the graph where gradients are recorded."""
        locations = sampling_locations(self.reference_points, self.sampling_offsets, self.shapes)
        return DeformableCall(self.value, self.shapes, locations, attention_weights(self.attention_logits))

    def run(self) -> Tensor:
        """The operator's output (B, Q, H * C), bit by bit what the network alone would have got."""
        return ms_deform_attn_fused(
            self.value, self.shapes, self.reference_points, self.sampling_offsets, self.attention_logits
        )


AttentionCall = DeformableCall | FusedDeformableCall

# One entry per operator that attention may be computed with: from its arguments to what a handler receives.
_CALLS: dict[Callable, Callable[..., AttentionCall]] = {
    ms_deform_attn: DeformableCall,
    ms_deform_attn_fused: FusedDeformableCall,
}

Handler = Callable[[Site, AttentionCall], Tensor]


class _AttentionMode(TorchFunctionMode):
    """Hands attention calls made inside a site to the handler; every other call passes through."""

    def __init__(self, handle: Handler):
        super().__init__()
        self.handle = handle
        self.running: list[Site] = []  # sites whose forward is under way, innermost last

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        call = _CALLS.get(func) if self.running else None
        if call is None:
            return func(*args, **kwargs)
        return self.handle(self.running[-1], call(*args, **kwargs))


def declaring_network(net: nn.Module) -> nn.Module:
    """The network that declares sites, taken out of the wrappers of `torch.compile` and of parallel strategies."""
    inner = net
    while not hasattr(type(inner), "sites"):
        wrapped = inner._modules.get("_orig_mod", inner._modules.get("module"))
        if wrapped is None:
            raise TypeError(
                f"{type(net).__name__} declares no attention sites; give it a method sites() that lists its Sites"
            )
        inner = wrapped
    return inner


@contextmanager
def attention_calls(net: nn.Module, sites: Sequence[Site], handle: Handler) -> Iterator[None]:
    """Hand every attention call of `sites` to `handle(site, call)`, whose result takes the place of the call's.

    The network itself is not changed: forward hooks tell which site is running, and both they and the function mode are
    gone afterwards. Compiled networks run eagerly meanwhile, since a compiled graph calls no Python function.
    Contexts nest: the one entered last sees a call first, and the call that it makes reaches the one outside it.
    """
    mode = _AttentionMode(handle)
    inner = declaring_network(net)
    with ExitStack() as undo:
        for site in sites:
            module = inner.get_submodule(site.module)

            def start(module, inputs, site=site):
                mode.running.append(site)

            def stop(module, inputs, output):
                mode.running.pop()

            undo.callback(module.register_forward_pre_hook(start).remove)
            undo.callback(module.register_forward_hook(stop, always_call=True).remove)
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        undo.enter_context(mode)
        yield
