"""Where recordings and interventions meet an unmodified network: the attention calls of its declared sites."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from ms_deform_attn import attention_weights, ms_deform_attn, ms_deform_attn_fused, sampling_locations
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_xai.explain.dense_calls import DenseAttentionCall, DotProductCall, SoftmaxCall, multi_head_attention
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


DeformableAttentionCall = DeformableCall | FusedDeformableCall
AttentionCall = DeformableAttentionCall | DenseAttentionCall

# One entry per operator that deformable attention may be computed with: from its arguments to what a handler receives.
_DEFORMABLE_CALLS: dict[Callable, Callable[..., DeformableAttentionCall]] = {
    ms_deform_attn: DeformableCall,
    ms_deform_attn_fused: FusedDeformableCall,
}


def _functional_softmax(heads: int, input: Tensor, dim=None, _stacklevel=3, dtype=None) -> SoftmaxCall | None:
    return _any_softmax(heads, input, dim, dtype)


def _any_softmax(heads: int, input: Tensor, dim=None, dtype=None) -> SoftmaxCall | None:
    """None where the softmax is not over keys."""
    keys_last = input.dim() in (3, 4) and dim in (-1, input.dim() - 1)
    return SoftmaxCall(heads, input, dtype) if keys_last else None


_DENSE_CALLS: dict[Callable, Callable[..., DenseAttentionCall | None]] = {
    F.scaled_dot_product_attention: DotProductCall,
    F.softmax: _functional_softmax,
    torch.softmax: _any_softmax,
    torch.Tensor.softmax: _any_softmax,
}

Handler = Callable[[Site, AttentionCall], Tensor]


def _heads_of(module: nn.Module) -> int:
    """How many heads attention tensors of three dimensions hold; 1 where the module does not say."""
    names = ("num_heads", "n_heads", "num_attention_heads", "heads")
    return next((n for n in (getattr(module, name, None) for name in names) if isinstance(n, int)), 1)


@dataclass(frozen=True)
class _Running:
    site: Site
    heads: int


class _AttentionMode(TorchFunctionMode):
    """Hands attention calls made inside a site to the handler; every other call passes through.

    It is on only while a site's forward runs, and so again when a checkpointed site is run in a backward pass.
    """

    def __init__(self, handle: Handler):
        super().__init__()
        self.handle = handle
        self.running: list[_Running] = []  # sites whose forward is under way, innermost last

    def start(self, running: _Running) -> None:
        self.running.append(running)
        self.__enter__()

    def stop(self, running: _Running) -> None:
        if self.running and self.running[-1] is running:  # not where an earlier hook failed and the site never started
            self.__exit__(None, None, None)
            self.running.pop()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        site, heads = self.running[-1].site, self.running[-1].heads
        if func is F.multi_head_attention_forward and site.kind == "dense":
            return multi_head_attention(lambda call: self.handle(site, call), *args, **kwargs)
        if site.kind == "deformable":
            call = _DEFORMABLE_CALLS[func](*args, **kwargs) if func in _DEFORMABLE_CALLS else None
        else:
            call = _DENSE_CALLS[func](heads, *args, **kwargs) if func in _DENSE_CALLS else None
        return func(*args, **kwargs) if call is None else self.handle(site, call)


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
    Contexts nest: the one entered last sees a call first, and the calls that it makes reach the one outside it.
    """
    mode = _AttentionMode(handle)
    inner = declaring_network(net)
    with ExitStack() as undo:
        for site in sites:
            module = inner.get_submodule(site.module)
            running = _Running(site, _heads_of(module))

            def start(module, inputs, running=running):
                mode.start(running)

            def stop(module, inputs, output, running=running):
                mode.stop(running)

            undo.callback(module.register_forward_pre_hook(start).remove)
            undo.callback(module.register_forward_hook(stop, always_call=True, prepend=True).remove)
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        yield
