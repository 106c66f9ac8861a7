"""What attention did at one site: its weights, and the linear operator that they are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.explain.linear_maps import DeformableMap, DenseMap
from lightning_xai.explain.seam import DeformableCall
from lightning_xai.explain.streams import Site


@dataclass(frozen=True)
class AttentionRecord:
    """How much each token read from each: probabilities (B, H, Q, K), after the softmax and before dropout."""

    site: Site
    probabilities: Tensor

    @property
    def weights(self) -> Tensor:
        """The probabilities (B, H, Q, K), under the name that both kinds of records have."""
        return self.probabilities

    @property
    def queries(self) -> int:
        """How many tokens are written."""
        return self.probabilities.shape[2]

    @property
    def read(self) -> Tensor:
        """False on the tokens (B, K) that a mask hides from every query."""
        return self.probabilities.amax((1, 2)) > 0

    def read_by(self, queries: Tensor, samples: Tensor) -> Tensor:
        """Which keys (T, K) masks let the chosen queries (T, Q) read; samples (T,): of which sample each is."""
        visible = (self.probabilities.amax(1) > 0)[samples]
        return (visible & queries[..., None]).any(1)

    def over_heads(self, weights: Tensor) -> Tensor:
        """The mean over heads of weights (T, H, Q, K): (T, Q, K)."""
        return head_mean(weights)

    def averaged(self, weights: Tensor | None = None, samples: Tensor | None = None) -> DenseMap:
        """The operator of these weights, averaged over the heads.

        weights: (T, H, Q, K), or (T, Q, K) averaged already; by default the recorded ones, of the samples (T,).
        """
        if weights is None:
            weights = head_mean(self.probabilities)
            each_once = samples is None or samples.tolist() == list(range(len(weights)))
            weights = weights if each_once else weights[samples]
        return DenseMap(head_mean(weights) if weights.dim() == 4 else weights)


@dataclass(frozen=True)
class DeformableRecord:
    """Where a deformable site looked, and how much.

    shapes: (L, 2), rows of (h, w). sampling_locations: (B, Q, H, L, P, 2), (x, y) in [0, 1] of the padded map.
    attention_weights: (B, Q, H, L, P), which sum to 1 over (L, P). value: (B, K, H, C), what was sampled; a record made
    from stored numbers, for a picture, has none.
    """

    site: Site
    shapes: Tensor
    sampling_locations: Tensor
    attention_weights: Tensor
    value: Tensor | None = None

    @classmethod
    def of(cls, site: Site, call: DeformableCall) -> "DeformableRecord":
        """The record of a call, off its graph."""
        tensors = (call.shapes, call.sampling_locations, call.attention_weights, call.value)
        return cls(site, *(tensor.detach() for tensor in tensors))

    @property
    def weights(self) -> Tensor:
        """The attention weights (B, Q, H, L, P), under the name that both kinds of records have."""
        return self.attention_weights

    @property
    def queries(self) -> int:
        """How many tokens are written."""
        return self.attention_weights.shape[1]

    @property
    def read(self) -> Tensor:
        """False on the tokens (B, K) whose value the network set to zero: padding."""
        if self.value is None:
            raise ValueError(f"the record of {self.site.module} has no value: record a forward pass to apply it")
        return (self.value != 0).any(-1).any(-1)

    def read_by(self, queries: Tensor, samples: Tensor) -> Tensor:
        """Which keys (T, K) are there for queries (T, Q) to sample; samples (T,): of which sample each is."""
        return self.read[samples]

    def over_heads(self, weights: Tensor) -> Tensor:
        """Weights (T, Q, H, L, P) as they are: each head samples at other places."""
        return weights

    def averaged(self, weights: Tensor | None = None, samples: Tensor | None = None) -> DeformableMap:
        """The operator of these weights, averaged over the heads.

        weights: (T, Q, H, L, P), by default the recorded ones. samples: (T,), the sample of each, by default in order.
        """
        tensors = (self.sampling_locations, self.attention_weights, self.read)
        locations, own, read = (tensor if samples is None else tensor[samples] for tensor in tensors)
        dtype = torch.promote_types(own.dtype, torch.float32)
        weights = own if weights is None else weights
        return DeformableMap(self.shapes, locations.to(dtype), weights.to(dtype), read)


def head_mean(weights: Tensor) -> Tensor:
    """The mean over heads of (T, H, Q, K): (T, Q, K)."""
    if weights.device.type != "cpu":
        return weights.mean(1)
    # A product reads memory in order, which a CPU does more than twice as fast as a reduction over axis 1.
    share = weights.new_full((1, weights.shape[1]), 1 / weights.shape[1])
    with torch.autocast("cpu", enabled=False):
        return (share @ weights.flatten(2)).unflatten(2, weights.shape[2:])[:, 0]
