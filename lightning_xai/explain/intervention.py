"""What a network does when chosen heads, levels or points of its deformable attention are silenced."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_xai.explain.seam import AttentionCall, attention_calls, declaring_network
from lightning_xai.explain.streams import Site


@dataclass(frozen=True)
class Extent:
    """How many layers a part has, and how many heads, levels and points the attention of each."""

    layers: int
    heads: int
    levels: int
    points: int


@dataclass(frozen=True)
class Intervention:
    """Mute chosen attention weights, or keep only them, in chosen layers of a network with deformable attention.

    The chosen weights are those of the given heads *and* levels *and* points; what is left out means all of them.
    "mute" silences the chosen weights, "keep" all the others of the chosen layers. "zero" sets the silenced weights to
    0 and leaves the rest; "renormalise" also divides the rest by its sum over (levels, points), which is what masking
    the logits before the softmax gives; a head with all its weights silenced stays at 0.
    """

    part: Literal["encoder", "decoder", "all"] = "all"
    layers: list[int] | None = None
    heads: list[int] | None = None
    levels: list[int] | None = None
    points: list[int] | None = None
    action: Literal["mute", "keep"] = "mute"
    mode: Literal["zero", "renormalise"] = "zero"

    def applied(self, net: nn.Module) -> AbstractContextManager[None]:
        """A context in which the forward passes of `net` are made under this intervention."""
        return intervene(net, [self])

    def concerns(self, site: Site) -> bool:
        return self.part in ("all", site.part) and (self.layers is None or site.layer in self.layers)

    def weights(self, attention_weights: Tensor) -> Tensor:
        """The attention weights (B, Q, H, L, P) that remain of those given."""
        chosen = attention_weights.new_ones(attention_weights.shape[2:], dtype=torch.bool)
        for axis, indices in enumerate((self.heads, self.levels, self.points)):
            if indices is not None:
                along = chosen.new_zeros(chosen.shape[axis])
                along[indices] = True
                chosen = chosen & along.reshape([-1 if axis == i else 1 for i in range(3)])
        kept = chosen if self.action == "keep" else ~chosen
        remaining = attention_weights.masked_fill(~kept, 0)
        if self.mode == "renormalise":
            total = remaining.sum((-2, -1), keepdim=True)
            remaining = remaining / total.masked_fill(total == 0, 1)
        return remaining

    def check(self, extents: dict[str, Extent]) -> None:
        """Raise ValueError when this names something that a network of these extents does not have."""
        options = {"part": ("all", *extents), "action": ("mute", "keep"), "mode": ("zero", "renormalise")}
        for name, allowed in options.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"intervention: {name} {getattr(self, name)!r} is none of {', '.join(allowed)}")
        parts = list(extents) if self.part == "all" else [self.part]
        for name in ("layers", "heads", "levels", "points"):
            indices = getattr(self, name)
            if indices is None:
                continue
            if not indices:
                raise ValueError(f"intervention: {name} is empty; name at least one, or leave {name} out to mean all")
            enough = any if name == "layers" else all
            for index in indices:
                if not enough(0 <= index < getattr(extents[part], name) for part in parts):
                    existing = ", ".join(f"0 to {getattr(extents[part], name) - 1} in the {part}" for part in parts)
                    raise ValueError(f"intervention: there is no {name[:-1]} {index}; {name} go from {existing}")


def extents(net: nn.Module) -> dict[str, Extent]:
    """What an intervention can choose from, by part of the network."""
    inner = declaring_network(net)
    sites = [site for site in inner.sites() if site.kind == "deformable"]
    found = {}
    for part in dict.fromkeys(site.part for site in sites):
        modules = [inner.get_submodule(site.module) for site in sites if site.part == part]
        found[part] = Extent(len(modules), *(getattr(modules[0], n) for n in ("n_heads", "n_levels", "n_points")))
    return found


@contextmanager
def intervene(net: nn.Module, interventions: Sequence[Intervention]) -> Iterator[None]:
    """Run the forward passes made inside the context under several interventions, one after the other.

    The network's own parameters and code stay as they are. A recording entered inside this context shows the weights
    before the interventions, one entered around it the weights that were used.
    Raises ValueError for a part, layer, head, level or point that the network does not have.
    """
    inner = declaring_network(net)
    for intervention in interventions:
        intervention.check(extents(net))

    def silence(site: Site, call: AttentionCall) -> Tensor:
        call = call.explicit()
        weights = call.attention_weights
        for intervention in interventions:
            if intervention.concerns(site):
                weights = intervention.weights(weights)
        return call.with_weights(weights).run()

    sites = [s for s in inner.sites() if s.kind == "deformable" and any(i.concerns(s) for i in interventions)]
    with attention_calls(net, sites, silence):
        yield
