"""Deformable attention against the reference's core operator and its module."""

from collections.abc import Iterator

import torch
from case import Case
from ms_deform_attn import (
    MSDeformAttn,
    attention_weights,
    available_paths,
    dense_attention,
    ms_deform_attn,
    ms_deform_attn_fused,
    sampling_locations,
    use_path,
)
from torch import Tensor

from checks import check


def every_path() -> Iterator[None]:
    """Each implementation that can compute on this CPU in turn."""
    for name in available_paths(torch.device("cpu")):
        with use_path(name):
            yield


@check("deformable_detr/core")
def core(case: Case) -> None:
    for _ in every_path():
        _core(case)


def _core(case: Case) -> None:
    for dtype, suffix in ((torch.float32, ""), (torch.float64, "_f64")):
        names = ("value", "sampling_locations", "attention_weights")
        leaves = value, locations, weights = [case.inputs[name].to(dtype).requires_grad_() for name in names]
        shapes = case.inputs["spatial_shapes"]
        output = ms_deform_attn(value, shapes, locations, weights)
        grads = torch.autograd.grad(output, leaves, case.inputs["grad_output"].to(dtype))
        case.compare(f"output{suffix}", output)
        case.compare(f"grad_value{suffix}", grads[0])
        case.compare(f"grad_sampling_locations{suffix}", grads[1], where=_same_cell(case, locations, dtype))
        case.compare(f"grad_attention_weights{suffix}", grads[2])
        if dtype == torch.float64:
            case.compare("dense_attention_f64", dense_attention(shapes, locations, weights).transpose(1, 2))


def _same_cell(case: Case, locations: Tensor, dtype: torch.dtype) -> Tensor:
    """Everywhere, but in float32 not at the queries on cell borders whose one-sided gradient rounding decides."""
    where = torch.ones(locations.shape, dtype=torch.bool)
    if dtype == torch.float32:
        where[:, case.info.get("queries_where_float32_and_float64_location_gradients_differ", [])] = False
    return where


@check("deformable_detr/module")
def module(case: Case) -> None:
    for _ in every_path():
        _module(case)


def _module(case: Case) -> None:
    inputs = case.inputs
    attention = MSDeformAttn(**case.config)
    weights = case.state_dict()
    stored = case.outputs["init_sampling_offsets_bias"]
    if not torch.equal(stored, weights["sampling_offsets.bias"]):
        case.compare("init_sampling_offsets_bias", attention.sampling_offsets.bias.clone())
    attention.load_state_dict(weights)
    if torch.equal(stored, weights["sampling_offsets.bias"]):  # the reference run stored it only after loading
        case.compare("init_sampling_offsets_bias", attention.sampling_offsets.bias)
    query, value_input, reference_points = (
        inputs[name].clone().requires_grad_() for name in ("query", "input_flatten", "reference_points")
    )
    mask = inputs["padding_mask"].bool() if "padding_mask" in inputs else None
    seen = {}

    class Record(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is ms_deform_attn_fused:
                seen["value"], shapes, points, offsets, logits = args
                seen["sampling_locations"] = sampling_locations(points, offsets, shapes)
                seen["attention_weights"] = attention_weights(logits)
            return function(*args, **(kwargs or {}))

    with Record():
        output = attention(query, reference_points, value_input, inputs["spatial_shapes"], mask)
    case.compare("output", output)
    for name, tensor in seen.items():
        case.compare(name, tensor)
    output.backward(inputs["grad_output"])
    case.compare("grad_query", query.grad)
    case.compare("grad_input_flatten", value_input.grad)
    case.compare("grad_reference_points", reference_points.grad)
    for name, parameter in attention.named_parameters():
        if f"grad.{name}" in case.outputs:
            case.compare(f"grad.{name}", parameter.grad)
