"""Where to sample and with which weight: the arithmetic in front of the operator, and its gradients."""

import torch
from torch import Tensor


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


def attention_weights(logits: Tensor) -> Tensor:
    """Softmax of logits (B, Q, H, L, P) over the points of all levels together.

    On the CPU it goes through the first dimension where rows do not fill vector registers: rows of 12 numbers take
    14 ns a number directly and 2 ns transposed; rows of 16 take 1 ns directly.
    """
    rows = logits.flatten(3)
    if logits.device.type != "cpu" or rows.shape[-1] % 16 == 0:
        return rows.softmax(-1).view(logits.shape)
    return rows.movedim(-1, 0).contiguous().softmax(0).movedim(0, -1).unflatten(-1, logits.shape[3:])


def location_gradients(
    grad_locations: Tensor, reference_points: Tensor, offsets: Tensor, shapes: Tensor, needs_reference: bool
) -> tuple[Tensor | None, Tensor]:
    """Gradients of reference_points (None unless needed) and offsets for the cotangent of `sampling_locations`."""
    if reference_points.shape[-1] == 2:
        sizes = shapes.flip(-1).to(grad_locations.device, grad_locations.dtype)
        grad_reference = grad_locations.sum((2, 4)) if needs_reference else None
        return grad_reference, grad_locations / sizes[:, None]
    step = 0.5 / offsets.shape[4]
    grad_reference = None
    if needs_reference:
        # A point far outside has no slope, and zero times an infinite offset would not be zero.
        products = torch.where(grad_locations == 0, 0, grad_locations * offsets)
        grad_sizes = products.sum((2, 4)) * step
        grad_reference = torch.cat([grad_locations.sum((2, 4)), grad_sizes], -1)
    return grad_reference, grad_locations * (reference_points[:, :, None, :, None, 2:] * step)


def logit_gradients(grad_weights: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the logits for the cotangent of `attention_weights`: w * (g - sum(w * g))."""
    products = weights * grad_weights
    return products - weights * products.sum((-1, -2), keepdim=True)
