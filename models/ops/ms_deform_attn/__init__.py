"""Multi-scale deformable attention for CPU and CUDA: one operator, its module and its exact dense equivalent.

Legend of shapes: B batch, Q queries, H heads, C channels per head, L levels, P points per level, S tokens of all levels
together; h, w rows and columns of a level.
"""

from ms_deform_attn.dense import dense_attention
from ms_deform_attn.functional import ms_deform_attn
from ms_deform_attn.module import MSDeformAttn, sampling_locations

__all__ = ["MSDeformAttn", "dense_attention", "ms_deform_attn", "sampling_locations"]
