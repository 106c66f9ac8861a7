"""The operators `ms_deform_attn::forward`, `::backward`, `::fused_forward`, `::fused_backward` and their registrations.

Each has a fake kernel (torch.compile, torch.export), autograd, a rule under autocast and a rule under vmap. What
computes them is chosen in `paths`; a kernel of somebody else may still take a device over
(`torch.library.register_kernel`).
"""

import torch
from torch import Tensor

from ms_deform_attn.paths import chosen_path

Levels = tuple[tuple[int, int], ...]


def _levels(value: Tensor, shapes: Tensor) -> Levels:
    """The levels as numbers, checked here because a compiled graph knows the numbers only when it runs."""
    levels = tuple((h, w) for h, w in shapes.tolist())
    if any(h < 1 or w < 1 for h, w in levels):
        raise ValueError(f"shapes is {levels}, expected at least one row and one column in each level")
    cells = sum(h * w for h, w in levels)
    if cells != value.shape[1]:
        raise ValueError(f"shapes {levels} have {cells} cells, expected the {value.shape[1]} tokens of value")
    return levels


def _is_empty(value: Tensor, weights: Tensor) -> bool:
    return value.numel() == 0 or weights.numel() == 0


def _output(value: Tensor, weights: Tensor) -> tuple[int, int, int]:
    return value.shape[0], weights.shape[1], value.shape[2] * value.shape[3]


@torch.library.custom_op("ms_deform_attn::forward", mutates_args=())
def forward(value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    levels = _levels(value, shapes)
    if _is_empty(value, attention_weights):
        return value.new_zeros(_output(value, attention_weights))
    return chosen_path(value).functions().forward(value, levels, sampling_locations, attention_weights)


@forward.register_fake
def _(value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    return value.new_empty(_output(value, attention_weights))


@torch.library.custom_op("ms_deform_attn::backward", mutates_args=())
def backward(
    grad_output: Tensor, value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = value, sampling_locations, attention_weights
    levels = _levels(value, shapes)
    if _is_empty(value, attention_weights):
        return tuple(_zeros_like(t) for t in inputs)
    path = chosen_path(value).functions()
    grads = path.backward(grad_output, value, levels, sampling_locations, attention_weights)
    return tuple(grad.contiguous() for grad in grads)


@backward.register_fake
def _(
    grad_output: Tensor, value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(t.new_empty(t.shape) for t in (value, sampling_locations, attention_weights))


@torch.library.custom_op("ms_deform_attn::fused_forward", mutates_args=())
def fused_forward(
    value: Tensor, shapes: Tensor, reference_points: Tensor, sampling_offsets: Tensor, attention_logits: Tensor
) -> Tensor:
    levels = _levels(value, shapes)
    if _is_empty(value, attention_logits):
        return value.new_zeros(_output(value, attention_logits))
    path = chosen_path(value).functions()
    return path.fused_forward(value, levels, reference_points, sampling_offsets, attention_logits)


@fused_forward.register_fake
def _(
    value: Tensor, shapes: Tensor, reference_points: Tensor, sampling_offsets: Tensor, attention_logits: Tensor
) -> Tensor:
    return value.new_empty(_output(value, attention_logits))


@torch.library.custom_op("ms_deform_attn::fused_backward", mutates_args=())
def fused_backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    needs_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Without needs_reference the gradient of reference_points is an empty tensor, for an operator returns tensors."""
    inputs = value, reference_points, sampling_offsets, attention_logits
    levels = _levels(value, shapes)
    if _is_empty(value, attention_logits):
        grads = [_zeros_like(t) for t in inputs]
    else:
        path = chosen_path(value).functions()
        grads = list(path.fused_backward(grad_output, value, levels, *inputs[1:], needs_reference))
    if not needs_reference:
        grads[1] = reference_points.new_empty(0)
    return tuple(grad.contiguous() for grad in grads)


@fused_backward.register_fake
def _(
    grad_output: Tensor,
    value: Tensor,
    shapes: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    needs_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = [t.new_empty(t.shape) for t in (value, reference_points, sampling_offsets, attention_logits)]
    if not needs_reference:
        grads[1] = reference_points.new_empty(0)
    return tuple(grads)


def _zeros_like(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, memory_format=torch.contiguous_format)


# --- autograd


def _save_inputs(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grad_value, grad_locations, grad_weights = backward(grad_output, *ctx.saved_tensors)
    return grad_value, None, grad_locations, grad_weights


def _differentiate_fused(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    needs_reference = ctx.needs_input_grad[2]
    grads = fused_backward(grad_output, *ctx.saved_tensors, needs_reference)
    return grads[0], None, grads[1] if needs_reference else None, grads[2], grads[3]


def _refuse_second_derivative(ctx, *grads: Tensor) -> None:
    raise RuntimeError(
        "ms_deform_attn has no second derivative: call autograd without create_graph, "
        "or differentiate torch.nn.functional.grid_sample twice instead"
    )


forward.register_autograd(_differentiate, setup_context=_save_inputs)
fused_forward.register_autograd(_differentiate_fused, setup_context=_save_inputs)
backward.register_autograd(_refuse_second_derivative)
fused_backward.register_autograd(_refuse_second_derivative)


# --- vmap: the mapped dimension becomes part of the batch


def _mapped_into_batch(info, dims: tuple[int | None, ...], arguments: tuple) -> list:
    """The arguments with the mapped dimension inside their first one; shapes and flags stay as they are."""
    folded = []
    for argument, dim in zip(arguments, dims, strict=True):
        if not isinstance(argument, Tensor) or argument.dtype == torch.int64:  # a flag, or shapes
            if dim is not None:
                raise ValueError(
                    f"vmap maps dimension {dim} of shapes, expected None: the levels are the same for all of a batch"
                )
            folded.append(argument)
            continue
        mapped = argument.expand(info.batch_size, *argument.shape) if dim is None else argument.movedim(dim, 0)
        folded.append(mapped.flatten(0, 1))
    return folded


def _vmap(operator):
    def rule(info, in_dims, *arguments):
        outputs = operator(*_mapped_into_batch(info, in_dims, arguments))
        if isinstance(outputs, Tensor):
            return outputs.unflatten(0, (info.batch_size, -1)), 0
        several = [None if o.numel() == 0 and o.dim() == 1 else o.unflatten(0, (info.batch_size, -1)) for o in outputs]
        absent = outputs[1]
        return tuple(absent if o is None else o for o in several), tuple(None if o is None else 0 for o in several)

    return rule


for _operator in (forward, backward, fused_forward, fused_backward):
    _operator.register_vmap(_vmap(_operator))


# --- autocast: value goes to half precision, where the operator's input projection left it; what says where to sample
# and how much stays as precise as it came, since half-precision locations are off by cells on large maps.


def _autocast(name: str, device: str):
    key = getattr(torch._C.DispatchKey, f"Autocast{device.upper()}")
    operator = getattr(torch.ops.ms_deform_attn, name).default

    def rule(keyset, value, *arguments):
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            if value.is_floating_point() and value.dtype != torch.float64 and value.device.type == device:
                value = value.to(torch.get_autocast_dtype(device))
            return operator(value, *arguments)

    return rule


_AUTOCAST = torch.library.Library("ms_deform_attn", "FRAGMENT")
for _name in ("forward", "fused_forward"):
    _AUTOCAST.impl(_name, _autocast(_name, "cpu"), "AutocastCPU", with_keyset=True)
    _AUTOCAST.impl(_name, _autocast(_name, "cuda"), "AutocastCUDA", with_keyset=True)
