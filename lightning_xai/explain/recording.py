"""What one forward pass did at a network's attention sites."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from ms_deform_attn import ms_deform_attn
from torch import Tensor, nn

from lightning_xai.explain.seam import AttentionCall, attention_calls, declaring_network
from lightning_xai.explain.streams import Site


@dataclass(frozen=True)
class DeformableRecord:
    """Where a deformable site looked, and how much.

    shapes: (L, 2), rows of (h, w). sampling_locations: (B, Q, H, L, P, 2), (x, y) in [0, 1] of the padded map.
    attention_weights: (B, Q, H, L, P), which sum to 1 over (L, P). value: (B, K, H, C), what was sampled. output:
    (B, Q, H * C), what was made of it, alone on the graph of a forward pass that was run with gradients. A record made
    from stored numbers, for a picture, has neither.
    """

    site: Site
    shapes: Tensor
    sampling_locations: Tensor
    attention_weights: Tensor
    value: Tensor | None = None
    output: Tensor | None = None

    def weight_gradients(self, grad_output: Tensor) -> Tensor:
        """Gradient (B, Q, H, L, P) of attention_weights, from that of `output` by the operator's own backward rule."""
        if self.value is None:
            raise ValueError(
                f"the record of {self.site.module} has no value: record a forward pass to differentiate it"
            )
        with torch.inference_mode(False), torch.enable_grad():
            weights = self.attention_weights.clone().requires_grad_()
            output = ms_deform_attn(self.value.clone(), self.shapes.clone(), self.sampling_locations.clone(), weights)
            return torch.autograd.grad(output, weights, grad_output)[0]


class Recording(Mapping[str, DeformableRecord]):
    """The records of one forward pass by module name, in the order in which the network declares its sites."""

    def __init__(self, sites: list[Site]):
        self.sites = sites
        self._records: dict[str, list[DeformableRecord]] = {site.module: [] for site in sites}

    def __getitem__(self, module: str) -> DeformableRecord:
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

    def at(self, part: str, layer: int) -> DeformableRecord:
        """The record of layer `layer` of part `part`; negative layers count from the last."""
        layers = [site for site in self.sites if site.part == part]
        if not layers:
            raise LookupError(f"no part {part!r}; the recorded parts are {', '.join(self.parts())}")
        if not -len(layers) <= layer < len(layers):
            raise LookupError(f"no layer {layer} in the {part}; it has layers 0 to {len(layers) - 1}")
        return self[layers[layer].module]

    def parts(self) -> dict[str, int]:
        """The recorded parts and how many layers each has."""
        counts: dict[str, int] = {}
        for site in self.sites:
            counts[site.part] = counts.get(site.part, 0) + 1
        return counts

    def add(self, site: Site, call: AttentionCall, output: Tensor) -> None:
        with torch.no_grad():
            call = call.explicit()
        tensors = (call.shapes, call.sampling_locations, call.attention_weights, call.value)
        record = DeformableRecord(site, *(tensor.detach() for tensor in tensors), output)
        self._records[site.module].append(record)

    def silent(self) -> list[str]:
        """Sites that recorded nothing."""
        return [module for module, records in self._records.items() if not records]


@contextmanager
def record(net: nn.Module) -> Iterator[Recording]:
    """Record the deformable attention of the one forward pass made inside the context.

    The network is not changed and nothing stays behind: no hook, no function mode, no gradient, no random number drawn.
    Raises RuntimeError at the end when a declared site recorded nothing.
    """
    inner = declaring_network(net)
    sites = [site for site in inner.sites() if site.kind == "deformable"]
    if not sites:
        raise ValueError(f"{type(inner).__name__} declares no deformable site, so there is nothing to record")
    recording = Recording(sites)

    def keep(site: Site, call: AttentionCall) -> Tensor:
        output = call.run()
        recording.add(site, call, output)
        return output

    with attention_calls(net, sites, keep):
        yield recording
    if recording.silent():
        raise RuntimeError(
            f"nothing was recorded at {', '.join(recording.silent())}: run the network's forward inside the context, "
            "and let the site call ms_deform_attn.ms_deform_attn or ms_deform_attn_fused"
        )
