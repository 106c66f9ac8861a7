"""The torch functions of a network's forward pass, in groups that share a relevance rule.

A function has several names (`torch.add`, `Tensor.add`, `Tensor.__add__`, ...); a group lists them all.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from ms_deform_attn import ms_deform_attn
from torch import Tensor


def functions(*names: str) -> frozenset[Callable]:
    """Every function of torch, of torch.nn.functional and every method of Tensor with one of these names."""
    found = {getattr(home, name) for home in (torch, F, Tensor) for name in names if hasattr(home, name)}
    missing = [name for name in names if not any(hasattr(home, name) for home in (torch, F, Tensor))]
    if missing:
        raise AttributeError(f"torch has no function {', '.join(missing)}")
    return frozenset(found)


# Sums of two tensors, and products and quotients of two.
SUMS = functions("add", "__add__", "__radd__", "sub", "subtract", "__sub__", "__rsub__", "rsub")
MULTIPLICATIONS = functions("mul", "multiply", "__mul__", "__rmul__")
DIVISIONS = functions("div", "divide", "true_divide", "__truediv__")

# Matrix products.
MATRIX_PRODUCTS = functions("matmul", "__matmul__", "bmm", "mm")
EINSUM = functions("einsum")

# A product or quotient and a sum in one call, which is taken apart.
SUMS_WITH_PRODUCT = {name: functions(name) for name in ("baddbmm", "addmm", "addcmul", "addcdiv")}

# Linear maps of an input by a weight, called as (input, weight, bias, ...).
CONVOLUTIONS = functions("conv1d", "conv2d", "conv3d")
LINEAR = functions("linear") | CONVOLUTIONS

# The output is a mean, sum or maximum over some of the input's elements.
POOLING = functions(
    "mean", "sum", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "max_pool2d", "interpolate"
)

SOFTMAX = functions("softmax")
LOG_SOFTMAX = functions("log_softmax")
LAYER_NORM = functions("layer_norm")
OTHER_NORMS = functions("batch_norm", "group_norm", "instance_norm", "normalize") | (
    functions("rms_norm") if hasattr(F, "rms_norm") else frozenset()
)

# One number in, one number out.
ELEMENTWISE = functions(
    "relu", "gelu", "silu", "elu", "leaky_relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "mish", "softplus",
    "tanh", "sigmoid", "exp", "log", "clamp", "clamp_min", "clamp_max", "neg", "__neg__", "logsigmoid",
)  # fmt: skip

# Those of them that do not map 0 to 0, so that what they give is not in proportion to what they are given.
NOT_ZERO_AT_ZERO = functions(
    "hardsigmoid", "softplus", "sigmoid", "exp", "log", "clamp", "clamp_min", "clamp_max", "logsigmoid"
)

# What normalisations written out by hand divide by: taken as given, so relevance goes past it.
DETACHED = functions(
    "detach", "pow", "__pow__", "square", "sqrt", "rsqrt", "reciprocal", "__rtruediv__", "var", "std", "norm",
    "logsumexp",
) | frozenset({torch.linalg.vector_norm, torch.linalg.norm})  # fmt: skip

# Elements are only moved, copied or chosen: each takes its relevance along, as it takes its gradient.
STRUCTURAL = functions(
    "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "permute", "transpose", "swapaxes",
    "movedim", "moveaxis", "t", "squeeze", "unsqueeze", "expand", "expand_as", "repeat", "repeat_interleave",
    "tile", "broadcast_to", "contiguous", "clone", "to", "type", "type_as", "float", "double", "half", "bfloat16",
    "cpu", "cuda", "cat", "concat", "concatenate", "stack", "hstack", "vstack", "split", "split_with_sizes",
    "chunk", "tensor_split", "unbind", "select", "narrow", "index_select", "gather", "take_along_dim", "roll",
    "flip", "pad", "unfold", "where", "masked_fill", "masked_select", "__getitem__", "diagonal", "diag", "tril",
    "triu", "as_strided", "pixel_shuffle", "pixel_unshuffle", "max", "amax", "topk", "sort", "dropout", "dropout1d",
    "dropout2d", "requires_grad_", "atleast_1d", "atleast_2d", "atleast_3d", "channel_shuffle", "index_put",
    "scatter",
) | frozenset({Tensor.T.__get__, Tensor.mT.__get__, Tensor.H.__get__, Tensor.data.__get__})  # fmt: skip

EMBEDDING = functions("embedding")
DEFORMABLE = frozenset({ms_deform_attn})

# Functions that change their first argument, and those that give the changed one instead.
IN_PLACE: dict[Callable, Callable] = {
    Tensor.__iadd__: torch.add,
    Tensor.add_: torch.add,
    Tensor.__isub__: torch.sub,
    Tensor.sub_: torch.sub,
    Tensor.__imul__: torch.mul,
    Tensor.mul_: torch.mul,
    Tensor.__itruediv__: torch.div,
    Tensor.div_: torch.div,
    Tensor.relu_: torch.relu,
    Tensor.masked_fill_: torch.masked_fill,
    torch.relu_: torch.relu,
    F.relu_: torch.relu,
}
