"""The attention module around the operator: projections, sampling offsets, weights."""

import math

import torch
from torch import Tensor, nn

from ms_deform_attn.functional import ms_deform_attn


def sampling_locations(reference_points: Tensor, offsets: Tensor, shapes: Tensor) -> Tensor:
    """Where to sample: the reference point plus offsets in cells (points) or in half boxes over P (boxes).

    location = (x, y) + offset / (w_l, h_l) for a point, (cx, cy) + offset / P * (w, h) / 2 for a box.

    reference_points: (B, Q, L, 2 | 4) in [0, 1]. offsets: (B, Q, H, L, P, 2). shapes: (L, 2), (h, w) per level.
    Returns (B, Q, H, L, P, 2). Raises ValueError for references that are neither points nor boxes.
    Source: Zhu et al., Deformable DETR, ICLR 2021, appendix A.4 (boxes: iterative bounding box refinement).
    """
    if reference_points.shape[-1] not in (2, 4):
        raise ValueError(
            f"reference_points has shape {tuple(reference_points.shape)}, "
            f"expected (B, Q, L, 2) points or (B, Q, L, 4) boxes"
        )
    points = offsets.shape[-2]

    def per_point(per_level: Tensor) -> Tensor:
        """(..., L, 2) -> (..., L * P * 2): runs long enough for vector instructions, unlike a broadcast of pairs."""
        return per_level.unsqueeze(-2).expand(*per_level.shape[:-1], points, 2).flatten(-3)

    centres = per_point(reference_points[:, :, None, :, :2])  # (B, Q, 1, L * P * 2)
    if reference_points.shape[-1] == 2:
        sizes = shapes.flip(-1).to(reference_points.device, reference_points.dtype)  # (w, h)
        locations = torch.addcdiv(centres, offsets.flatten(3), per_point(sizes))
    else:
        boxes = per_point(reference_points[:, :, None, :, 2:])
        locations = torch.addcmul(centres, offsets.flatten(3), boxes, value=0.5 / points)
    return locations.view(offsets.shape)


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension; on the CPU through the first one where rows do not fill vector registers.

    Rows of 12 numbers take 14 ns a number directly and 2 ns transposed; rows of 16 take 1 ns directly.
    """
    if logits.device.type != "cpu" or logits.shape[-1] % 16 == 0:
        return logits.softmax(-1)
    return logits.movedim(-1, 0).contiguous().softmax(0).movedim(0, -1)


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with its four projections; parameter names and initial values of the original.

    Source: Zhu et al., Deformable DETR, ICLR 2021, section 4.1.
    """

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(
                f"d_model={d_model} is not divisible by n_heads={n_heads}: every head has d_model / n_heads channels"
            )
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets become a star (head m looks towards 2 pi m / H, point i lies i + 1 cells away), weights uniform."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.n_heads, dtype=torch.float32) * (2.0 * math.pi / self.n_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions /= directions.abs().amax(-1, keepdim=True)  # (H, 2), on the unit square
        steps = torch.arange(1, self.n_points + 1, dtype=torch.float32)
        star = directions[:, None, None] * steps[:, None]  # (H, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(star.expand(-1, self.n_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value_input: Tensor,
        shapes: Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from each query to a few points of every level around its reference.

        query: (B, Q, d_model), content plus position. reference_points: (B, Q, L, 2) points or (B, Q, L, 4) cxcywh.
        value_input: (B, S, d_model). shapes: (L, 2) int64 on the CPU. padding_mask: (B, S), True where value is zeroed.
        Returns (B, Q, d_model).
        """
        B, Q, _ = query.shape
        heads, levels, points = self.n_heads, self.n_levels, self.n_points
        value = self.value_proj(value_input)
        if padding_mask is not None:
            value = value.masked_fill_(padding_mask[..., None], 0.0)
        offsets = self.sampling_offsets(query).view(B, Q, heads, levels, points, 2)
        weights = _softmax(self.attention_weights(query).view(B, Q, heads, levels * points))
        output = ms_deform_attn(
            value.unflatten(-1, (heads, -1)),
            shapes,
            sampling_locations(reference_points, offsets, shapes),
            weights.unflatten(-1, (levels, points)),
        )
        return self.output_proj(output)
