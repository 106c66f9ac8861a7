"""Multi-scale deformable attention for CPU and CUDA: one operator, its module and its exact dense equivalent.

Legend of shapes: B batch, Q queries, H heads, C channels per head, L levels, P points per level, S tokens of all levels
together; h, w rows and columns of a level.
"""

from ms_deform_attn.dense import dense_attention
from ms_deform_attn.functional import ms_deform_attn, ms_deform_attn_fused
from ms_deform_attn.module import MSDeformAttn
from ms_deform_attn.paths import available_paths, use_path
from ms_deform_attn.sampling import attention_weights, sampling_locations

__all__ = [
    "MSDeformAttn",
    "attention_weights",
    "available_paths",
    "dense_attention",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "sampling_locations",
    "use_path",
]
