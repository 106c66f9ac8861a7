"""The attention module around the operator: projections, sampling offsets, weights."""

import math

import torch
from torch import Tensor, nn

from ms_deform_attn.functional import ms_deform_attn_fused


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
            value = value.masked_fill(padding_mask[..., None], 0.0)
        output = ms_deform_attn_fused(
            value.unflatten(-1, (heads, -1)),
            shapes,
            reference_points,
            self.sampling_offsets(query).view(B, Q, heads, levels, points, 2),
            self.attention_weights(query).view(B, Q, heads, levels, points),
        )
        return self.output_proj(output)
