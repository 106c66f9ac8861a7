"""Checks of the installed operator, printed one a line: `python models/ops/test.py [--device cuda]`.

Exits with 1 if a check fails. The yardstick is `torch.nn.functional.grid_sample`, differentiated by torch itself.
"""

import argparse
import sys

import torch
import torch.nn.functional as F
from ms_deform_attn import dense_attention, ms_deform_attn
from torch import Tensor

B, Q, H, P = 1, 2, 2, 2
LEVELS = ((6, 4), (3, 2))


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


def report(name: str, passed: bool, ours: Tensor, theirs: Tensor) -> bool:
    error = (ours - theirs).abs()
    relative = (error / theirs.abs().clamp(min=torch.finfo(theirs.dtype).tiny)).max()
    print(f"* {passed} {name}: max_abs_err {error.max():.2e} max_rel_err {relative:.2e}")
    return passed


def check_forward_equal_with_pytorch(dtype: torch.dtype, device: str) -> bool:
    inputs = random_inputs(32, dtype, device)
    ours, theirs = ms_deform_attn(*inputs), grid_sample_attention(*inputs)
    name, tolerance = ("double", 1e-9) if dtype == torch.float64 else ("float", 1e-4)
    close = torch.allclose(ours, theirs, rtol=tolerance, atol=1e-8)
    return report(f"check_forward_equal_with_pytorch_{name}", close, ours, theirs)


def check_gradient_equal_with_pytorch(dtype: torch.dtype, device: str) -> bool:
    value, shapes, locations, weights = random_inputs(32, dtype, device)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    cotangent = torch.randn(B, Q, H * 32, dtype=dtype, device=device)
    ours, theirs = (
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(attend(value, shapes, locations, weights), leaves, cotangent)]
        )
        for attend in (ms_deform_attn, grid_sample_attention)
    )
    name = "double" if dtype == torch.float64 else "float"
    return report(
        f"check_gradient_equal_with_pytorch_{name}", torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6), ours, theirs
    )


def check_dense_equivalent(device: str) -> bool:
    value, shapes, locations, weights = random_inputs(32, torch.float64, device)
    dense = torch.einsum("bhqs,bshc->bqhc", dense_attention(shapes, locations, weights), value).flatten(2)
    ours = ms_deform_attn(value, shapes, locations, weights)
    return report("check_dense_equivalent_double", torch.allclose(ours, dense, rtol=1e-9, atol=1e-12), ours, dense)


def check_gradient_numerical(channels: int, device: str) -> bool:
    value, shapes, locations, weights = random_inputs(channels, torch.float64, device)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    passed = torch.autograd.gradcheck(
        lambda value, locations, weights: ms_deform_attn(value, shapes, locations, weights),
        leaves,
        fast_mode=channels > 100,
        raise_exception=False,
    )
    print(f"* {passed} check_gradient_numerical(D={channels})")
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = parser.parse_args().device
    torch.manual_seed(3)
    results = [check_forward_equal_with_pytorch(dtype, device) for dtype in (torch.float64, torch.float32)]
    results += [check_gradient_equal_with_pytorch(dtype, device) for dtype in (torch.float64, torch.float32)]
    results.append(check_dense_equivalent(device))
    results += [check_gradient_numerical(channels, device) for channels in (30, 32, 64, 71, 1025, 2048, 3096)]
    print(f"all checking is {all(results)}")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
