"""The exact dense attention matrix that deformable attention equals."""

import torch
from torch import Tensor


def dense_attention(shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """The matrix A with output[b, q, h] = sum_s A[b, h, q, s] value[b, s, h]: bilinear coefficient times weight.

    Row sums are below those of the weights where samples fall outside the map. Differentiable in both arguments.

    shapes: (L, 2), (h, w) per level. sampling_locations: (B, Q, H, L, P, 2). attention_weights: (B, Q, H, L, P).
    Returns (B, H, Q, S). Raises ValueError where shapes and sampling_locations differ in levels.
    """
    if sampling_locations.shape[3] != shapes.shape[0]:
        raise ValueError(
            f"sampling_locations has {sampling_locations.shape[3]} levels, expected the {shapes.shape[0]} of shapes"
        )
    rows = []
    for level, (h, w) in enumerate(shapes.tolist()):
        x, y = (sampling_locations[:, :, :, level] * sampling_locations.new_tensor([w, h]) - 0.5).unbind(-1)
        # The bilinear coefficient of a cell is a product of two hats, zero further than one cell away.
        across = (1 - (x[..., None] - torch.arange(w, device=x.device)).abs()).clamp(min=0)  # (B, Q, H, P, w)
        down = (1 - (y[..., None] - torch.arange(h, device=y.device)).abs()).clamp(min=0)  # (B, Q, H, P, h)
        weighted = down * attention_weights[:, :, :, level, :, None]
        rows.append((weighted.transpose(-1, -2) @ across).flatten(-2))  # (B, Q, H, h * w)
    return torch.cat(rows, dim=-1).transpose(1, 2)
