"""Attention as a linear operator from the tokens that it reads to those that it writes, applied without its matrix."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from ms_deform_attn import ms_deform_attn
from torch import Tensor


def _full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Relevance is not rounded by a caller's autocast."""
    return torch.autocast(tensor.device.type, enabled=False)


@dataclass(frozen=True)
class DenseMap:
    """T operators A given as matrices (T, Q, K)."""

    matrix: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    def mix(self, x: Tensor) -> Tensor:
        """A x of x (T, K, D): (T, Q, D)."""
        with _full_precision(self.matrix):
            return self.matrix @ x

    def mix_back(self, r: Tensor) -> Tensor:
        """r A of rows r (T, R, Q): (T, R, K)."""
        with _full_precision(self.matrix):
            return r @ self.matrix

    def rows(self, tokens: Tensor) -> Tensor:
        """Row tokens[t] of each operator: (T, K)."""
        return self.matrix[torch.arange(len(tokens), device=tokens.device), tokens]

    def row_sums(self) -> Tensor:
        """A 1: (T, Q)."""
        return self.matrix.sum(-1)


@dataclass(frozen=True)
class DeformableMap:
    """T operators A x = mean over heads of the weighted bilinear samples of x, as deformable attention takes them.

    shapes: (L, 2). locations: (T, Q, H, L, P, 2). weights: (T, Q, H, L, P). read: (T, K), False on tokens whose value
    the network sets to zero, the padding: nothing is read there.
    """

    shapes: Tensor
    locations: Tensor
    weights: Tensor
    read: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtype

    def mix(self, x: Tensor) -> Tensor:
        """A x of x (T, K, D): (T, Q, D)."""
        heads = self.weights.shape[2]
        value = (x * self.read[..., None]).to(self.weights.dtype)[:, :, None].expand(-1, -1, heads, -1)
        with _full_precision(self.weights):
            mixed = ms_deform_attn(value.contiguous(), self.shapes, self.locations, self.weights)
        return mixed.unflatten(-1, (heads, -1)).mean(2)

    def mix_back(self, r: Tensor) -> Tensor:
        """r A of rows r (T, R, Q): (T, R, K), the gradient of `mix`, which is linear."""
        with torch.inference_mode(False), torch.enable_grad():
            shapes, locations, weights, read, r = (
                tensor.clone() if tensor.is_inference() else tensor.detach()
                for tensor in (self.shapes, self.locations, self.weights, self.read, r)
            )
            x = weights.new_zeros(len(r), read.shape[1], r.shape[1]).requires_grad_()
            mixed = DeformableMap(shapes, locations, weights, read).mix(x)
            (back,) = torch.autograd.grad(mixed, x, r.transpose(1, 2).to(weights.dtype))
        return back.transpose(1, 2)

    def rows(self, tokens: Tensor) -> Tensor:
        """Row tokens[t] of each operator: (T, K)."""
        chosen = (torch.arange(len(tokens), device=tokens.device), tokens)
        one = DeformableMap(self.shapes, self.locations[chosen][:, None], self.weights[chosen][:, None], self.read)
        return one.mix_back(one.weights.new_ones(len(tokens), 1, 1))[:, 0]

    def row_sums(self) -> Tensor:
        """A 1: (T, Q)."""
        return self.mix(self.weights.new_ones(*self.read.shape, 1))[..., 0]


LinearMap = DenseMap | DeformableMap
