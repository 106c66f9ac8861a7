"""Arrays of references that divide by zero, or that say how far apart two runs of them were."""

from collections.abc import Callable

from case import Case
from torch import Tensor


def tolerate(case: Case, allowed: Callable[[str], tuple[float, float]]) -> None:
    """Give every output the tolerance `allowed(name)`: (absolute, relative to the array's largest magnitude)."""
    rules = {}
    for name, theirs in case.outputs.items():
        absolute, relative = allowed(name)
        largest = float(theirs.double().abs().nan_to_num(0, posinf=0, neginf=0).amax()) if theirs.numel() else 0.0
        rules[name] = {"atol": absolute + relative * largest}
    case.info["tolerance"]["per_output"] = rules


def measured(case: Case, name: str, what: str = "measured_rel_to_max") -> float:
    """How far apart two runs of the reference were at this output; 0 where the case does not say."""
    return case.info["tolerance"].get("per_array", {}).get(name, {}).get(what, 0.0)


def compare_defined(case: Case, name: str, ours: Tensor) -> None:
    """Compare an array that is 0 / 0 in the reference, and 0 in ours, where a map is constant."""
    case.compare(name, ours.nan_to_num(0), reference=case.outputs[name].nan_to_num(0))


def tolerate_stated(case: Case) -> None:
    """Give every output the tolerance the case states: `abs` plus `per_array_rel` or `rel` of the largest value."""
    stated = case.info["tolerance"]
    relative = stated.get("per_array_rel", {})
    tolerate(case, lambda name: (stated["abs"], relative.get(name, stated["rel"])))
