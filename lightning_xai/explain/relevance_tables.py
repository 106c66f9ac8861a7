"""Rule tables: how each kind of operation hands relevance back, for each published method."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_xai.explain.attn_lrp_rules import (
    epsilon_group_norm,
    epsilon_layer_norm,
    epsilon_log_softmax,
    epsilon_quotient,
    taylor_softmax,
)
from lightning_xai.explain.relevance_operations import (
    CONVOLUTIONS,
    DEFORMABLE,
    DIVISIONS,
    EINSUM,
    ELEMENTWISE,
    LAYER_NORM,
    LINEAR,
    LOG_SOFTMAX,
    MATRIX_PRODUCTS,
    MULTIPLICATIONS,
    NOT_ZERO_AT_ZERO,
    OTHER_NORMS,
    POOLING,
    SOFTMAX,
    SUMS,
    functions,
)
from lightning_xai.explain.relevance_rules import Operation, Rule, RuleTable, fork

STABILISER = 1e-9


def stabilised(a: Tensor, b: Tensor) -> Tensor:
    """a / (b + 1e-9), and 0 where b is 0: the quotient of Chefer et al., whatever the sign of b."""
    denominator = b + STABILISER
    denominator = torch.where(denominator == 0, STABILISER, denominator)
    return torch.where(b == 0, 0.0, a / denominator)


Quotient = Callable[[Tensor, Tensor], Tensor]


def passes(operation: Operation, relevance: Tensor) -> Sequence[Tensor | None]:
    """The first input takes all: elementwise functions, normalisations, softmax, a product or sum with a constant."""
    first, *others = operation.inputs
    return [_summed_to(relevance, first.shape), *(None for _ in others)]


def quotient_of_two(operation: Operation, relevance: Tensor) -> Sequence[Tensor | None]:
    """The numerator takes all: what a normalisation divides by is taken as given."""
    if operation.inputs[0] is operation.args[0]:
        return passes(operation, relevance)
    return [None for _ in operation.inputs]


def proportional(quotient: Quotient) -> Rule:
    """R_i = x_i (dZ/dx_i)^T (R / Z): in proportion to what each input's elements contributed to the output."""

    def rule(operation: Operation, relevance: Tensor) -> Sequence[Tensor]:
        return _contributions(operation, relevance, quotient)

    return rule


def uniform(quotient: Quotient) -> Rule:
    """The proportional rule for products: each of k factors takes one k-th of what the output has.

    A product of matrices where one factor is a weight is a linear map and belongs to `linear`.
    """

    def rule(operation: Operation, relevance: Tensor) -> Sequence[Tensor]:
        factors = len(operation.inputs)
        if operation.function in MATRIX_PRODUCTS | DEFORMABLE:
            factors = 2
        elif operation.function in EINSUM:
            operands = [x for x in tree_leaves(operation.args) if isinstance(x, Tensor)]
            factors = sum(x.requires_grad or x.dim() > 2 for x in operands)
        return [share / factors for share in _contributions(operation, relevance, quotient)]

    return rule


def residual_sum(operation: Operation, relevance: Tensor) -> Sequence[Tensor | None]:
    """The sum of two streams, so that neither of two large opposite terms blows up (Chefer et al. 2021, eq. 9-10).

    r_a = a R / (a + b), then scaled to the total |sum r_a| / (|sum r_a| + |sum r_b|) * sum R; r_b likewise. A constant
    summand takes nothing. The sums are over all elements of a sample: one target of each sample at a time.
    """
    if len(operation.inputs) == 1:
        return passes(operation, relevance)
    shares = _uncopied_contributions(operation, relevance)
    sums = [operation.total(share) for share in shares]
    whole, total = operation.total(relevance), sums[0].abs() + sums[1].abs()
    return [
        _summed_to(share * stabilised(stabilised(own.abs(), total) * whole, own), x.shape)
        for x, share, own in zip(operation.inputs, shares, sums, strict=True)
    ]


def proportional_sum(quotient: Quotient) -> Rule:
    """The sum of two streams, each in proportion to its summand; a constant summand takes nothing."""

    def rule(operation: Operation, relevance: Tensor) -> Sequence[Tensor | None]:
        if len(operation.inputs) == 1:
            return passes(operation, relevance)
        return _contributions(operation, relevance, quotient)

    return rule


def positive_linear(apart: bool = False, conserve: bool = False) -> Rule:
    """Linear maps by what is excited (alpha = 1): x+ and W+, x- and W-; the bias takes nothing.

    R_in = x+ (W+^T S) + x- (W-^T S) with S = R / (x+ W+ + x- W-). apart: the two terms have denominators of their own,
    x+ W+ and x- W-. conserve: R_in is scaled to the sum of R, over all elements of a sample: one target of each sample
    at a time.
    """

    def rule(operation: Operation, relevance: Tensor) -> Sequence[Tensor]:
        apply, x, weight = _linear_map(operation)
        excited = [(part(x), part(weight)) for part in (_positive, _negative)]
        if not operation.kept:
            outputs = [apply(*pair) for pair in excited]
            together = outputs[0] + outputs[1]
            operation.kept.update(enumerate(outputs if apart else (together, together)))
        result = torch.zeros_like(x)
        for number, (part, signed) in enumerate(excited):
            back = _transposed(operation, apply, signed)
            result = result + part * back(stabilised(relevance, operation.kept[number]))
        return [result * stabilised(operation.total(relevance), operation.total(result)) if conserve else result]

    return rule


def pixel_convolution(otherwise: Rule) -> Rule:
    """The first convolution, of three input channels, by the z^B rule, which knows the range of pixels.

    R_in = x (W^T S) - l (W+^T S) - h (W-^T S) with S = R / (x W - l W+ - h W- + 1e-9), l and h the least and the
    greatest value of each image; what is padding can have no other value, l = h = x, and takes nothing. Other
    convolutions follow `otherwise`. Source: Montavon et al. 2017, eq. 13.
    """

    def rule(operation: Operation, relevance: Tensor) -> Sequence[Tensor]:
        apply, x, weight = _linear_map(operation)
        if x.shape[1] != 3:
            return otherwise(operation, relevance)
        axes, padding = tuple(range(1, x.dim())), _padding(operation, x)
        low, high = (
            bound(x.masked_fill(padding, unseen), axes, keepdim=True)
            for bound, unseen in ((torch.amin, torch.inf), (torch.amax, -torch.inf))
        )
        bounds = (x, torch.where(padding, x, low), torch.where(padding, x, high))
        weights = (weight, _positive(weight), _negative(weight))
        if not operation.kept:
            parts = [apply(bound, signed) for bound, signed in zip(bounds, weights, strict=True)]
            operation.kept[0] = parts[0] - parts[1] - parts[2] + STABILISER
        quotient = relevance / operation.kept[0]
        shares = [
            bound * _transposed(operation, apply, signed)(quotient)
            for bound, signed in zip(bounds, weights, strict=True)
        ]
        return [(shares[0] - shares[1] - shares[2]).masked_fill(padding, 0)]

    return rule


def _padding(operation: Operation, x: Tensor) -> Tensor:
    """Which pixels of images x (B, 3, h, w) are none: (B, 1, h, w), or (1, 1, 1, 1) where all are."""
    padding = operation.whole.padding
    if padding is None or padding.shape != x[:, 0].shape:
        return x.new_zeros((1,) * x.dim(), dtype=torch.bool)
    return padding[:, None]


def matrix_product(linear: Rule, quotient: Quotient, unscaled: bool) -> Rule:
    """A product of two matrices that depend on the input, by halves; a product with a weight matrix is a linear map.

    unscaled: the quotient stabilises Q K^T as it is before its scaling, whatever the order in which it was computed.
    """

    def rule(operation: Operation, relevance: Tensor) -> Sequence[Tensor]:
        scale = operation.scale if unscaled else 1.0
        halves = uniform(lambda a, b: quotient(a / scale, b / scale)) if scale != 1.0 else uniform(quotient)
        is_weight = len(operation.inputs) == 1 and any(
            factor is not operation.inputs[0] and factor.dim() <= 2 for factor in operation.args[:2]
        )
        return (linear if is_weight else halves)(operation, relevance)

    return rule


def deformable_attention(quotient: Quotient) -> Rule:
    """Deformable attention is linear in the values and in the weights: half to each, nothing to the locations."""
    halves = uniform(quotient)

    def rule(operation: Operation, relevance: Tensor) -> Sequence[Tensor | None]:
        locations = operation.args[2]
        shares = halves(operation, relevance)
        return [None if x is locations else share for x, share in zip(operation.inputs, shares, strict=True)]

    return rule


def _contributions(operation: Operation, relevance: Tensor, quotient: Quotient) -> list[Tensor]:
    pulled = operation.pull(quotient(relevance, operation.output.detach()))
    return [x.detach() * g for x, g in zip(operation.inputs, pulled, strict=True)]


def _uncopied_contributions(operation: Operation, relevance: Tensor) -> list[Tensor]:
    """The contributions of two summands, in the shape of their sum also where a summand was broadcast."""
    output = operation.output.detach()
    shares = _contributions(operation, relevance, stabilised)
    for place, (x, slope) in enumerate(zip(operation.inputs, operation.pull(torch.ones_like(output)), strict=True)):
        if x.shape != output.shape:
            copies = output.numel() // x.numel()
            shares[place] = x.detach() * (slope / copies) * stabilised(relevance, output)
    return shares


def _linear_map(operation: Operation) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]:
    """(map, x, weight) of an operation that is linear in x, without its bias."""
    (x,) = operation.inputs
    if operation.function in LINEAR:
        weight, rest = operation.args[1], operation.args[3:]
        return lambda a, w: operation.function(a, w, None, *rest, **operation.kwargs), x.detach(), weight
    left, right = operation.args[:2]
    if left is x:
        return torch.matmul, x.detach(), right
    return (lambda a, w: torch.matmul(w, a)), x.detach(), left


def _transposed(
    operation: Operation, apply: Callable[[Tensor, Tensor], Tensor], weight: Tensor
) -> Callable[[Tensor], Tensor]:
    """The transpose of the map x -> apply(x, weight), which is linear."""
    if operation.function in LINEAR - CONVOLUTIONS:
        return lambda vector: vector @ weight
    (x,) = operation.inputs
    with torch.enable_grad():
        output = apply(x, weight)
    return lambda vector: torch.autograd.grad(output, x, vector)[0]


def _positive(tensor: Tensor) -> Tensor:
    return tensor.clamp(min=0)


def _negative(tensor: Tensor) -> Tensor:
    return tensor.clamp(max=0)


def _summed_to(relevance: Tensor, shape: torch.Size) -> Tensor:
    """Relevance of a tensor that was broadcast: summed over the copies."""
    relevance = relevance.flatten(0, relevance.dim() - len(shape)).sum(0) if relevance.dim() > len(shape) else relevance
    copied = [axis for axis, size in enumerate(shape) if size == 1 and relevance.shape[axis] != 1]
    return relevance.sum(copied, keepdim=True) if copied else relevance


def table(
    linear: Rule,
    sums: Rule,
    quotient: Quotient,
    unscaled: bool = True,
    others: Mapping[frozenset[Callable], Rule] = MappingProxyType({}),
) -> RuleTable:
    """A rule for every group of operations; those that only move elements need none. others: instead of these rules."""
    groups = {
        LINEAR: linear,
        CONVOLUTIONS: pixel_convolution(positive_linear(apart=True)),
        MATRIX_PRODUCTS: matrix_product(linear, quotient, unscaled),
        EINSUM: uniform(quotient),
        DEFORMABLE: deformable_attention(quotient),
        SUMS: sums,
        MULTIPLICATIONS: _product(quotient),
        DIVISIONS: quotient_of_two,
        POOLING: proportional(quotient),
        # x - log sum exp x: what is taken from all scores alike is taken as given, as of normalisations
        ELEMENTWISE | OTHER_NORMS | LAYER_NORM | SOFTMAX | LOG_SOFTMAX: passes,
        **others,
    }
    rules = {function: rule for group, rule in groups.items() for function in group}
    return rules | ({fork: stabilised_fork} if quotient is stabilised else {})


def stabilised_fork(tensor: Tensor, relevance: Tensor) -> Tensor:
    """The sum of the shares, X (R_1 + ... + R_k) / X with the authors' quotient."""
    return tensor * stabilised(relevance, tensor)


def _product(quotient: Quotient) -> Rule:
    """An elementwise product: halves, or all to the one factor that is not constant."""
    halves = uniform(quotient)
    return lambda operation, relevance: (passes if len(operation.inputs) == 1 else halves)(operation, relevance)


# Chefer et al., "Transformer Interpretability Beyond Attention Visualization" (their layers_ours).
CHEFER = table(positive_linear(), residual_sum, stabilised)
# The same as used for DETR, LXMERT and VisualBERT: each linear map conserves the total.
CHEFER_CONSERVING = table(positive_linear(conserve=True), residual_sum, stabilised, unscaled=False)
# Plain LRP as they compare with (their layers_lrp): for partial and for full LRP.
PLAIN_LRP = table(positive_linear(apart=True), proportional_sum(stabilised), stabilised)
# Achtibat et al. 2024, "AttnLRP".
# Relevance divided by a number that it is not in proportion to explodes where that number is near 0. So what adds a
# constant (biases of norms, position embeddings, functions that are not 0 at 0) absorbs its share, as biases do.
ATTN_LRP = table(
    proportional(epsilon_quotient),
    proportional(epsilon_quotient),
    epsilon_quotient,
    others={
        CONVOLUTIONS | functions("batch_norm") | NOT_ZERO_AT_ZERO: proportional(epsilon_quotient),
        SOFTMAX: taylor_softmax,
        LAYER_NORM: epsilon_layer_norm,
        functions("group_norm"): epsilon_group_norm,
        LOG_SOFTMAX: epsilon_log_softmax,
    },
)
TABLES: dict[str, RuleTable] = {
    "chefer": CHEFER,
    "chefer_conserving": CHEFER_CONSERVING,
    "plain": PLAIN_LRP,
    "attn_lrp": ATTN_LRP,
}
