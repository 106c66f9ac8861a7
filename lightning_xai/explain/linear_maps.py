"""Attention as a linear operator from the tokens that it reads to those that it writes, applied without its matrix."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from ms_deform_attn import ms_deform_attn
from torch import Tensor


def _full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Relevance is not rounded by a caller's autocast."""
    return torch.autocast(tensor.device.type, enabled=False)


def row_weights(rows: Tensor, count: int) -> Tensor:
    """How much of each token's row is read: (T, count) of tokens (T,) or of weights (T, N).

    Raises ValueError for weights of another number of tokens, or a token that does not exist.
    """
    if rows.is_floating_point():
        if rows.shape[1] != count:
            raise ValueError(f"rows holds weights of {rows.shape[1]} tokens, but the stream has {count}")
        return rows
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < count:
        raise ValueError(f"rows names the tokens {rows.unique().tolist()}; the stream's go from 0 to {count - 1}")
    return torch.nn.functional.one_hot(rows, count)


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

    def rows(self, rows: Tensor) -> Tensor:
        """Row rows[t] of each operator, or the sum of all its rows with weights rows[t] (T, Q): (T, K)."""
        if rows.is_floating_point():
            return self.mix_back(row_weights(rows, self.matrix.shape[1]).to(self.dtype)[:, None])[:, 0]
        return self.matrix[torch.arange(len(rows), device=rows.device), rows]

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

    def rows(self, rows: Tensor) -> Tensor:
        """Row rows[t] of each operator, or the sum of all its rows with weights rows[t] (T, Q): (T, K)."""
        if rows.is_floating_point():
            return self.mix_back(row_weights(rows, self.weights.shape[1]).to(self.dtype)[:, None])[:, 0]
        chosen = (torch.arange(len(rows), device=rows.device), rows)
        one = DeformableMap(self.shapes, self.locations[chosen][:, None], self.weights[chosen][:, None], self.read)
        return one.mix_back(one.weights.new_ones(len(rows), 1, 1))[:, 0]

    def row_sums(self) -> Tensor:
        """A 1: (T, Q)."""
        return self.mix(self.weights.new_ones(*self.read.shape, 1))[..., 0]


LinearMap = DenseMap | DeformableMap
