"""Checks of the installed operator, printed one a line: `python models/ops/test.py [--device cuda]`.

Every path that can compute here is checked; its name stands in the line. Exits with 1 if a check fails. The yardstick
is `torch.nn.functional.grid_sample`, differentiated by torch itself.
"""

import argparse
import sys

import torch
import torch.nn.functional as F
from ms_deform_attn import (
    attention_weights,
    dense_attention,
    ms_deform_attn,
    ms_deform_attn_fused,
    sampling_locations,
    use_path,
)
from ms_deform_attn.paths import PATHS, Path
from torch import Tensor

B, Q, H, P = 1, 2, 2, 2
LEVELS = ((6, 4), (3, 2))
NAMES = {torch.float64: "double", torch.float32: "float", torch.bfloat16: "bfloat16"}


def grid_sample_attention(
    value: Tensor, shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The same sum by grid_sample, one level after the other."""
    batch, _, heads, channels = value.shape
    output: Tensor | float = 0.0
    start = 0
    for level, (h, w) in enumerate(shapes.tolist()):
        maps = value[:, start : start + h * w].permute(0, 2, 3, 1).reshape(batch * heads, channels, h, w)
        grid = 2 * sampling_locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        weights = attention_weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        output = output + (F.grid_sample(maps, grid, align_corners=False) * weights).sum(-1)
        start += h * w
    return output.view(batch, heads * channels, -1).transpose(1, 2)


def random_inputs(channels: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = torch.tensor(LEVELS)
    value = torch.rand(B, int(shapes.prod(1).sum()), H, channels, dtype=dtype, device=device) * 0.01
    locations = torch.rand(B, Q, H, len(LEVELS), P, 2, dtype=dtype, device=device)
    weights = torch.rand(B, Q, H, len(LEVELS), P, dtype=dtype, device=device) + 1e-5
    return value, shapes, locations, weights / weights.sum((-1, -2), keepdim=True)


def report(name: str, path: str, ours: Tensor, theirs: Tensor, rtol: float, atol: float) -> bool:
    passed = torch.allclose(ours, theirs, rtol=rtol, atol=atol)
    error = (ours - theirs).abs()
    relative = (error / theirs.abs().clamp(min=torch.finfo(theirs.dtype).tiny)).max()
    print(f"* {passed} {name}({path}): max_abs_err {error.max():.2e} max_rel_err {relative:.2e}")
    return passed


def gradients(output: Tensor, leaves: list[Tensor], cotangent: Tensor) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(output, leaves, cotangent)])


def check_forward_equal_with_pytorch(path: str, dtype: torch.dtype, device: str) -> bool:
    inputs = random_inputs(32, dtype, device)
    value, shapes, locations, weights = inputs
    theirs = grid_sample_attention(value.double(), shapes, locations.double(), weights.double())
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-2}[dtype]
    name = f"check_forward_equal_with_pytorch_{NAMES[dtype]}"
    return report(name, path, ms_deform_attn(*inputs).double(), theirs, rtol=tolerance, atol=1e-8)


def check_gradient_equal_with_pytorch(path: str, dtype: torch.dtype, device: str) -> bool:
    value, shapes, locations, weights = random_inputs(32, dtype, device)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    cotangent = torch.randn(B, Q, H * 32, dtype=dtype, device=device)
    ours, theirs = (
        gradients(attend(value, shapes, locations, weights), leaves, cotangent)
        for attend in (ms_deform_attn, grid_sample_attention)
    )
    return report(f"check_gradient_equal_with_pytorch_{NAMES[dtype]}", path, ours, theirs, rtol=1e-4, atol=1e-6)


def check_fused_equal_with_pytorch(path: str, coordinates: int, dtype: torch.dtype, device: str) -> bool:
    """Output and all gradients of the fused entry; reference points with 2 coordinates and boxes with 4."""
    value, shapes, offsets, logits = random_inputs(32, dtype, device)
    reference = torch.rand(B, Q, len(LEVELS), coordinates, dtype=dtype, device=device)
    leaves = [tensor.requires_grad_() for tensor in (value, reference, offsets, logits)]
    cotangent = torch.randn(B, Q, H * 32, dtype=dtype, device=device)
    outputs = (
        ms_deform_attn_fused(value, shapes, reference, offsets, logits),
        grid_sample_attention(value, shapes, sampling_locations(reference, offsets, shapes), attention_weights(logits)),
    )
    ours, theirs = (torch.cat([y.detach().flatten(), gradients(y, leaves, cotangent)]) for y in outputs)
    name = f"check_fused_{coordinates}d_equal_with_pytorch_{NAMES[dtype]}"
    return report(name, path, ours, theirs, rtol=1e-4, atol=1e-6)


def check_dense_equivalent(path: str, device: str) -> bool:
    value, shapes, locations, weights = random_inputs(32, torch.float64, device)
    dense = torch.einsum("bhqs,bshc->bqhc", dense_attention(shapes, locations, weights), value).flatten(2)
    ours = ms_deform_attn(value, shapes, locations, weights)
    return report("check_dense_equivalent_double", path, ours, dense, rtol=1e-9, atol=1e-12)


def check_gradient_numerical(path: str, channels: int, device: str) -> bool:
    value, shapes, locations, weights = random_inputs(channels, torch.float64, device)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    passed = torch.autograd.gradcheck(
        lambda value, locations, weights: ms_deform_attn(value, shapes, locations, weights),
        leaves,
        fast_mode=channels > 100,
        raise_exception=False,
    )
    print(f"* {passed} check_gradient_numerical({path}, D={channels})")
    return passed


def check_path(path: Path, device: str) -> list[bool]:
    """All checks of one path in the types that it computes."""
    dtypes = [dtype for dtype in NAMES if path.computes(torch.empty(0, dtype=dtype, device=device))]
    exact = [dtype for dtype in dtypes if dtype != torch.bfloat16]
    results = [check_forward_equal_with_pytorch(path.name, dtype, device) for dtype in dtypes]
    results += [check_gradient_equal_with_pytorch(path.name, dtype, device) for dtype in exact]
    results += [check_fused_equal_with_pytorch(path.name, size, dtype, device) for size in (2, 4) for dtype in exact]
    if torch.float64 in dtypes:
        results.append(check_dense_equivalent(path.name, device))
        results += [
            check_gradient_numerical(path.name, channels, device) for channels in (30, 32, 64, 71, 1025, 2048, 3096)
        ]
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = parser.parse_args().device
    torch.manual_seed(3)
    able = [path for path in PATHS if path.computes(torch.empty(0, device=device))]
    print(
        f"paths on {device}: {', '.join(path.name for path in able)} (the first computes unless another is asked for)"
    )
    results = []
    for path in able:
        with use_path(path.name):
            results += check_path(path, device)
    print(f"all checking is {all(results)}")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
