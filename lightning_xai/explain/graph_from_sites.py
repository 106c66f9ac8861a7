"""Gradient graphs that begin at a network's first attention site, whatever the caller's modes and wrappers."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_xai.explain.seam import declaring_network
from lightning_xai.explain.streams import Site


@contextmanager
def without_reduction(net: nn.Module) -> Iterator[None]:
    """Parallel wrappers between `net` and the declaring network expect no backward pass of the forward made here."""
    with ExitStack() as undo:
        while not hasattr(type(net), "sites"):
            if hasattr(net, "no_sync"):
                undo.enter_context(net.no_sync())
            net = net._modules.get("_orig_mod", net._modules.get("module"))
        yield


@contextmanager
def graph_from_first_site(net: nn.Module, sites: Sequence[Site]) -> Iterator[None]:
    """Grad mode, off until the first site runs and on from then; works inside no_grad and inference_mode."""
    inner = declaring_network(net)
    with ExitStack() as undo:
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.set_grad_enabled(False))
        # Weights that autocast casts before the first site would stay in its cache, without a graph, for the caller.
        undo.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)

        def usable(module, args, kwargs):
            return tree_map_only(Tensor, _normal, (args, kwargs))

        started = []

        def switch_on(module, inputs):
            if started and not torch.is_grad_enabled():
                raise RuntimeError(
                    f"{type(module).__name__} runs without gradients inside the network, under no_grad or reentrant "
                    "checkpointing: use checkpoint(..., use_reentrant=False), or a method without gradients"
                )
            started.append(module)
            torch.set_grad_enabled(True)

        undo.callback(net.register_forward_pre_hook(usable, with_kwargs=True).remove)
        for site in sites:
            undo.callback(inner.get_submodule(site.module).register_forward_pre_hook(switch_on).remove)
        yield


def _normal(tensor: Tensor) -> Tensor:
    """A tensor that autograd may save: made under inference_mode it cannot, but its clone can."""
    return tensor.clone() if tensor.is_inference() else tensor
