"""From DETR's outputs to one detection a query, in pixels of the original images."""

import torch
from torch import Tensor


def query_detections(logits: Tensor, boxes: Tensor, sizes: Tensor) -> dict[str, Tensor]:
    """Each query's best class and its probability; no threshold, no suppression, queries in their own order.

    logits: (B, Q, K + 1), softmax with the last class for no object. boxes: (B, Q, 4) cxcywh in [0, 1]. sizes: (B, 2)
    (h, w) of the original images, in pixels. Gives scores, labels, queries (B, Q) and boxes (B, Q, 4) xyxy in pixels.
    Source: Carion et al. 2020, the original repository's PostProcess.
    """
    scores, labels = logits.float().softmax(-1)[..., :-1].max(-1)
    centre, extent = boxes.float().split(2, -1)
    height, width = sizes.to(boxes.device).float().unbind(1)
    pixels = torch.stack([width, height, width, height], 1)[:, None]
    return {
        "scores": scores,
        "labels": labels,
        "queries": torch.arange(logits.shape[1], device=logits.device).expand_as(labels),
        "boxes": torch.cat([centre - extent / 2, centre + extent / 2], -1) * pixels,
    }
