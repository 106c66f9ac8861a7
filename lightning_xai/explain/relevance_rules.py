"""Relevance in the place of gradients: an unmodified network whose every operation has a backward rule of a table.

Inside `relevance_rules(net, table)` a forward pass builds a graph in which each operation remembers its inputs. A
backward pass through that graph gives ordinary gradients, or, inside `relevance_pass()`, relevance: what arrives at a
tensor is then its share of the relevance that the pass started with. Where a tensor is used several times its shares
add up.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from lightning_xai.explain.relevance_decompositions import DECOMPOSED
from lightning_xai.explain.relevance_operations import (
    DETACHED,
    EMBEDDING,
    IN_PLACE,
    LINEAR,
    MULTIPLICATIONS,
    STRUCTURAL,
    SUMS,
)
from lightning_xai.explain.seam import declaring_network


class SamplesMixedError(RuntimeError):
    """The sums of single samples were asked for where it is not clear which axis of a tensor holds the samples."""


@dataclass(frozen=True)
class Operation:
    """One call of a torch function, run apart from the network's graph on copies of the tensors that take part.

    inputs: the tensors among the arguments that relevance can reach, leaves of the operation's own small graph.
    output: what the call gave, on that graph. scale: the number that one factor of a matrix product has been
    multiplied by just before, as the queries of attention are. kept: what a rule computed that holds for all passes.
    whole: the forward pass that this is part of.
    """

    function: Callable
    args: tuple
    kwargs: dict[str, Any]
    inputs: tuple[Tensor, ...]
    output: Tensor
    scale: float = 1.0
    whole: "RuledForward | None" = None
    kept: dict[int, Tensor] = field(default_factory=dict)

    def pull(self, vector: Tensor) -> tuple[Tensor, ...]:
        """The vector-Jacobian product with each input, zeros where the output does not depend on it."""
        found = torch.autograd.grad(self.output, self.inputs, vector, retain_graph=True, allow_unused=True)
        return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(self.inputs, found, strict=True))

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of each sample of a tensor with as many axes as the output, which can be multiplied with it.

        Raises SamplesMixedError where the pass carries targets of several samples and none or several of the axes may
        be theirs.
        """
        batch = None if self.whole is None else self.whole.batch
        if batch is None or batch == 1:
            return tensor.sum()
        axes = [axis for axis in range(min(2, self.output.dim())) if self.output.shape[axis] == batch]
        if len(axes) != 1:
            raise SamplesMixedError
        return tensor.sum([axis for axis in range(tensor.dim()) if axis != axes[0]], keepdim=True)


def fork(tensor: Tensor, relevance: Tensor) -> Tensor:
    """The key of a table's rule for a tensor that is used several times; the shares of its uses are summed already."""
    return relevance


# From an operation and the relevance of its output to that of each of its inputs.
Rule = Callable[[Operation, Tensor], Sequence[Tensor | None]]
RuleTable = Mapping[Callable, Rule]


class _Pass:
    """Whether backward passes carry relevance at the moment, and through how many operations the present one went.

    Process-wide, since the backward functions of a GPU's operations run in threads of their own.
    """

    active = False
    operations = 0


class _Ruled(torch.autograd.Function):
    """An operation whose backward is its gradient, or its rule while relevance is passed."""

    @staticmethod
    def forward(ctx, operation: Operation, rule: Rule, *inputs: Tensor) -> Tensor:
        ctx.operation, ctx.rule = operation, rule
        return operation.output.detach()

    @staticmethod
    def backward(ctx, arriving: Tensor):
        with torch._C.DisableTorchFunction():
            if not _Pass.active:
                return (None, None, *ctx.operation.pull(arriving))
            _Pass.operations += 1
            with torch.autocast(arriving.device.type, enabled=False):
                return (None, None, *ctx.rule(ctx.operation, arriving))


class _Carried(torch.autograd.Function):
    """Marks a tensor as depending on the network's inputs, at no cost: its graph remembers nothing and ends here."""

    @staticmethod
    def forward(ctx, tensor: Tensor, mark: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, arriving: Tensor):
        return None, None


@contextmanager
def relevance_pass() -> Iterator[None]:
    """Inside, backward passes through a graph made under `relevance_rules` carry relevance instead of gradients.

    Raises RuntimeError at the end when no such graph was met, so that gradients are never taken for relevance.
    """
    before = _Pass.active, _Pass.operations
    _Pass.active, _Pass.operations = True, 0
    try:
        with torch.inference_mode(False):
            yield
        met = _Pass.operations
    finally:
        _Pass.active, _Pass.operations = before
    if met == 0:
        raise RuntimeError(
            "no operation with a rule was met: run the network's forward inside relevance_rules(net, table)"
        )


class RuledForward:
    """What a forward pass under rules leaves for the caller, where the rules go down to the inputs.

    inputs: the network's floating-point inputs, as leaves of the graph. embeddings: those of its integer inputs, words.
    Told before relevance is passed: padding, which pixels (B, h, w) of the image are none, None where all are; batch,
    how many samples have a target in the same pass, None for one target alone; separable, False once it turned out that
    samples cannot be told apart.
    """

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.embeddings: list[Tensor] = []
        self.padding: Tensor | None = None
        self.batch: int | None = None
        self.separable = True


@contextmanager
def relevance_rules(
    net: nn.Module, table: RuleTable, down_to: Literal["sites", "inputs"] = "sites"
) -> Iterator[RuledForward]:
    """Run the forward pass made inside the context with the backward rules of `table`, on an unmodified network.

    down_to: "sites" builds the graph from the first attention site on, which is all that relevance at the recorded
    sites needs; "inputs" from the network's inputs on, which the yielded object then lists. Enter `record` inside this
    context. The network's parameters take no relevance and get no gradient through this graph; numbers of the forward
    pass are those without rules. It runs without autocast, because relevance is badly conditioned.
    Raises LookupError when an operation between start and output has no rule, naming it.
    """
    if down_to not in ("sites", "inputs"):
        raise ValueError(f'down_to is {down_to!r}; relevance goes down to "sites" or to "inputs"')
    root = declaring_network(net) if down_to == "sites" else net
    mode = _RuleMode(table, started=down_to == "inputs")

    with ExitStack() as undo:
        undo.callback(root.register_forward_pre_hook(mode.receive, with_kwargs=True).remove)
        if down_to == "sites":
            first = root.get_submodule(root.sites()[0].module)
            undo.callback(first.register_forward_pre_hook(mode.start).remove)
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        for device in {parameter.device.type for parameter in net.parameters()}:
            undo.enter_context(torch.autocast(device, enabled=False))
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        undo.enter_context(mode)
        yield mode.forward


class _RuleMode(TorchFunctionMode):
    """Gives each operation on the way from the network's inputs to its outputs the rule of its function."""

    def __init__(self, table: RuleTable, started: bool):
        super().__init__()
        self.table = table
        self.started = started
        self.forward = RuledForward()
        self.tokens: set[int] = set()  # memory of the integer inputs: an embedding of them is an input too
        self.mark = torch.zeros((), requires_grad=True)

    def start(self, module: nn.Module, inputs: tuple) -> None:
        self.started = True

    def receive(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        """The network's arguments, the floating-point ones on the graph."""

        def on_graph(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            leaf = leaf.clone() if leaf.is_inference() else leaf
            if not leaf.is_floating_point():
                self.tokens.add(leaf.untyped_storage().data_ptr())
                return leaf
            return self.root(leaf, self.forward.inputs)

        with torch._C.DisableTorchFunction():
            return tree_map(on_graph, (args, kwargs))

    def root(self, tensor: Tensor, found: list[Tensor]) -> Tensor:
        with torch.enable_grad():
            if not self.started:
                return _Carried.apply(tensor.detach(), self.mark)
            found.append(tensor.detach().requires_grad_())
            return found[-1]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in STRUCTURAL and getattr(function, "__name__", None) == "__get__":
            return function(*args, **kwargs)
        if not torch.is_grad_enabled() and self.started:
            return function(*args, **kwargs)
        leaves, structure = tree_flatten((args, kwargs))
        leaves = [_changed(leaf) for leaf in leaves]
        carrying = any(_carries(leaf) for leaf in leaves)
        if carrying and function is Tensor.__setitem__:
            raise LookupError(
                "assignment by index (Tensor.__setitem__) has no relevance rule: build the tensor with torch.cat or "
                "torch.where, or explain by a gradient method"
            )
        if not carrying or not self.started or function in DETACHED:
            plain = [leaf.detach() if _on_graph(leaf) else leaf for leaf in leaves]
            outcome = self._run(function, structure, plain)
            if function in EMBEDDING and self._embeds_tokens(leaves):
                return self.root(outcome, self.forward.embeddings)
            if carrying and function not in DETACHED:
                return tree_map(self._carry, outcome)
            return outcome
        outcome = self._ruled(IN_PLACE.get(function, function), leaves, structure)
        if function in IN_PLACE and isinstance(args[0], Tensor):
            args[0].__dict__["changed_under_rules"] = outcome
        return outcome

    def _run(self, function: Callable, structure: TreeSpec, leaves: list) -> Any:
        args, kwargs = tree_unflatten(leaves, structure)
        return function(*args, **kwargs)

    def _embeds_tokens(self, leaves: list) -> bool:
        return any(
            isinstance(leaf, Tensor)
            and not leaf.is_floating_point()
            and leaf.untyped_storage().data_ptr() in self.tokens
            for leaf in leaves
        )

    def _carry(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        with torch.enable_grad():
            return _Carried.apply(leaf, self.mark)

    def _count_use(self, tensor: Tensor) -> None:
        """From the second use on, what arrives at a tensor goes through the table's rule for forks."""
        uses = tensor.__dict__["uses_under_rules"] = _notes(tensor).get("uses_under_rules", 0) + 1
        if uses == 2 and fork in self.table:
            rule, value = self.table[fork], tensor.detach()
            tensor.register_hook(lambda arriving: rule(value, arriving) if _Pass.active else None)

    def _ruled(self, function: Callable, leaves: list, structure: TreeSpec) -> Any:
        for leaf in leaves:
            if _carries(leaf):
                self._count_use(leaf)
        args, kwargs = tree_unflatten(leaves, structure)
        if function in DECOMPOSED:
            with self:
                return DECOMPOSED[function](*args, **kwargs)
        rule = self.table.get(function)
        if rule is None:
            args, kwargs = tree_map(lambda x: x.detach() if isinstance(x, nn.Parameter) else x, (args, kwargs))
            outcome = function(*args, **kwargs)
            if function not in STRUCTURAL and any(map(_carries, tree_flatten(outcome)[0])):
                name = getattr(function, "__qualname__", None) or repr(function)
                raise LookupError(
                    f"no relevance rule for {name}, which the network calls on the way to its outputs; add a line to "
                    f"the table, which has rules for {', '.join(sorted({f.__name__ for f in self.table}))}"
                )
            return outcome
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
        if function in LINEAR:
            args, kwargs = _positional(args, kwargs)
        outer: list[Tensor] = []
        inner: list[Tensor] = []

        def apart(leaf: Any) -> Any:
            if _carries(leaf) or (function in SUMS and isinstance(leaf, nn.Parameter) and leaf.dim() > 1):
                outer.append(leaf.detach() if isinstance(leaf, nn.Parameter) else leaf)
                inner.append(leaf.detach().requires_grad_())
                return inner[-1]
            return leaf.detach() if isinstance(leaf, Tensor) else leaf

        numbers = [leaf for leaf in leaves if isinstance(leaf, float)]
        scales = [leaf.__dict__["scale_under_rules"] for leaf in leaves if "scale_under_rules" in _notes(leaf)]
        args, kwargs = tree_map(apart, (args, kwargs))
        # A checkpointed part of the network would be run again in the backward pass, where no rule is on: hooks of our
        # own make its operations keep what they need.
        with torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
            outcome = function(*args, **kwargs)
        operation = Operation(function, args, kwargs, tuple(inner), outcome, math.prod(scales), self.forward)
        output = _Ruled.apply(operation, rule, *outer)
        if function in MULTIPLICATIONS and len(numbers) == 1:
            output.__dict__["scale_under_rules"] = numbers[0]
        return output


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _notes(leaf: Any) -> dict[str, Any]:
    """What the mode wrote on a tensor."""
    return leaf.__dict__ if isinstance(leaf, Tensor) else {}


def _changed(leaf: Any) -> Any:
    """A tensor as the in-place functions have left it: under rules they change nothing but give a new tensor."""
    while "changed_under_rules" in _notes(leaf):
        leaf = leaf.__dict__["changed_under_rules"]
    return leaf


def _on_graph(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _carries(leaf: Any) -> bool:
    """Whether a tensor depends on the network's inputs: parameters and what is made of them alone take no relevance."""
    return _on_graph(leaf) and not isinstance(leaf, nn.Parameter)


def _positional(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments of a linear function with (input, weight, bias) first."""
    kwargs = dict(kwargs)
    for place, name in enumerate(("input", "weight", "bias")):
        if len(args) <= place:
            args = (*args, kwargs.pop(name, None))
    return args, kwargs
