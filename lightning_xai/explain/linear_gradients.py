"""Linear maps whose backward pass goes to their input alone, on a CPU by the faster of two libraries.

An explanation differentiates with respect to attention, never to weights, and the transposed linear maps are most of
what it costs: on an AMD EPYC oneDNN multiplies at 210 GFLOP/s where the BLAS behind `F.linear` reaches 90.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LEAST_ROWS = 64  # packing the weight costs about as much as one product with so many rows


@contextmanager
def linear_maps_of_inputs() -> Iterator[None]:
    """Inside, `F.linear` in float32 on a CPU gives its gradient to its input and none to weight and bias.

    Its output is that of `F.linear` to the last bit. Everything else is as it is; so is all of it where torch comes
    without oneDNN, under autocast, and with `torch.backends.mkldnn.flags(enabled=False)`.
    """
    if not _available():
        yield
        return
    with _LinearMaps():
        yield


def _available() -> bool:
    library = torch.backends.mkldnn
    operators = ("_reorder_linear_weight", "_linear_pointwise")
    return library.is_available() and library.enabled and all(hasattr(torch.ops.mkldnn, name) for name in operators)


class _LinearMaps(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear and torch.is_grad_enabled():
            x, weight, bias = _arguments(*args, **(kwargs or {}))
            plain = all(type(each) in (Tensor, torch.nn.Parameter) for each in (x, weight))
            if plain and x.requires_grad and _in_float32_on_cpu(x) and _in_float32_on_cpu(weight):
                return _InputLinear.apply(x, weight.detach(), None if bias is None else bias.detach())
        return function(*args, **(kwargs or {}))


def _arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def _in_float32_on_cpu(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


class _InputLinear(torch.autograd.Function):
    """x W^T + b, whose gradient goes to x alone."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def vmap(info, in_dims: tuple, x: Tensor, weight: Tensor, bias: Tensor | None):
        """Met where a checkpointed layer runs again within a vectorised backward pass: no input of it is batched."""
        return _InputLinear.apply(x, weight, bias), in_dims[0]

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _Transposed.apply(gradient, *ctx.saved_tensors), None, None


class _Transposed(torch.autograd.Function):
    """g W of gradients g (..., C') and a weight (C', C)."""

    @staticmethod
    def forward(gradient: Tensor, weight: Tensor) -> Tensor:
        if gradient.numel() < LEAST_ROWS * gradient.shape[-1]:
            return gradient @ weight
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.t().contiguous())
        return torch.ops.mkldnn._linear_pointwise(gradient, packed, None, "none", [], "")

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def vmap(info, in_dims: tuple, gradient: Tensor, weight: Tensor):
        """The targets of a vectorised pass are rows like any others."""
        return _Transposed.apply(gradient.movedim(in_dims[0], 0), weight), 0

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return F.linear(gradient, *ctx.saved_tensors), None
