"""A path out of a pure PyTorch formulation, which knows the plain operator in one type only."""

from functools import reduce
from types import ModuleType

import torch
from torch import Tensor

from ms_deform_attn.sampling import attention_weights, location_gradients, logit_gradients, sampling_locations

Levels = tuple[tuple[int, int], ...]


def _widened(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the widest of their types, at least float32, in which everything is accumulated."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return [t.detach().to(dtype) for t in tensors]


class Formulation:
    """The four functions of a path, computed by a module with `forward` and `backward` for tensors of one type."""

    def __init__(self, module: ModuleType):
        self._module = module

    def forward(self, value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        """Output (B, Q, H * C) of value (B, S, H, C), locations (B, Q, H, L, P, 2), weights (B, Q, H, L, P)."""
        wide, locations, weights = _widened(value, locations, weights)
        return self._module.forward(wide, levels, locations, weights).to(value.dtype)

    def backward(
        self, grad_output: Tensor, value: Tensor, levels: Levels, locations: Tensor, weights: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients of value, locations and weights for the cotangent grad_output (B, Q, H * C)."""
        inputs = value, locations, weights
        cotangent, *wide = _widened(grad_output, *inputs)
        grads = self._module.backward(cotangent, wide[0], levels, *wide[1:])
        return tuple(grad.to(given.dtype) for grad, given in zip(grads, inputs, strict=True))

    def fused_forward(
        self, value: Tensor, levels: Levels, reference_points: Tensor, offsets: Tensor, logits: Tensor
    ) -> Tensor:
        """Output (B, Q, H * C) of references (B, Q, L, 2 | 4), offsets (B, Q, H, L, P, 2), logits (B, Q, H, L, P)."""
        wide, reference, raw, wide_logits = _widened(value, reference_points, offsets, logits)
        locations = sampling_locations(reference, raw, torch.tensor(levels, device="cpu"))
        weights = attention_weights(wide_logits)
        return self._module.forward(wide, levels, locations, weights).to(value.dtype)

    def fused_backward(
        self,
        grad_output: Tensor,
        value: Tensor,
        levels: Levels,
        reference_points: Tensor,
        offsets: Tensor,
        logits: Tensor,
        needs_reference: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Gradients of value, reference_points (None unless needed), offsets and logits."""
        cotangent, wide, reference, raw, wide_logits = _widened(grad_output, value, reference_points, offsets, logits)
        shapes = torch.tensor(levels, device="cpu")
        locations, weights = sampling_locations(reference, raw, shapes), attention_weights(wide_logits)
        grad_value, grad_locations, grad_weights = self._module.backward(cotangent, wide, levels, locations, weights)
        grad_reference, grad_offsets = location_gradients(grad_locations, reference, raw, shapes, needs_reference)
        return (
            grad_value.to(value.dtype),
            None if grad_reference is None else grad_reference.to(reference_points.dtype),
            grad_offsets.to(offsets.dtype),
            logit_gradients(grad_weights, weights).to(logits.dtype),
        )
