"""From a detector's outputs to boxes, scores and masks in pixels of the original images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def top_detections(logits: Tensor, boxes: Tensor, sizes: Tensor, count: int = 100) -> dict[str, Tensor]:
    """The `count` best (query, class) pairs of each image by sigmoid score; no threshold, no suppression.

    logits: (B, Q, K). boxes: (B, Q, 4) cxcywh in [0, 1]. sizes: (B, 2) (h, w) of the original images, in pixels.
    Gives scores, labels, queries (B, n) and boxes (B, n, 4) xyxy in pixels, best first, n = min(count, Q K). One query
    may appear with several labels.
    """
    classes = logits.shape[-1]
    scores, index = logits.float().sigmoid().flatten(1).topk(min(count, logits[0].numel()), dim=1)
    queries = index // classes
    centre, extent = boxes.float().gather(1, queries[..., None].expand(-1, -1, 4)).split(2, -1)
    height, width = sizes.to(boxes.device).float().unbind(1)
    pixels = torch.stack([width, height, width, height], 1)[:, None]
    xyxy = torch.cat([centre - extent / 2, centre + extent / 2], -1) * pixels
    return {"scores": scores, "labels": index % classes, "queries": queries, "boxes": xyxy}


def split_images(detections: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """One dictionary an image."""
    return [dict(zip(detections, image, strict=True)) for image in zip(*detections.values(), strict=True)]


def masks_in_images(masks: Tensor, sizes: Tensor, orig_sizes: Tensor, threshold: float = 0.5) -> list[Tensor]:
    """Binary masks (Q, 1, h, w) at the original size of each image.

    masks: (B, Q, h, w) logits over the padded batch. sizes: (B, 2) (h, w) before padding. orig_sizes: (B, 2). Resized
    bilinearly to the largest size, thresholded, cropped to the image, then resized to the original by nearest cell.
    """
    height, width = sizes.max(0).values.tolist()
    binary = F.interpolate(masks.float(), (height, width), mode="bilinear").sigmoid() > threshold
    return [
        F.interpolate(image[:, None, :h, :w].float(), tuple(original), mode="nearest").bool()
        for image, (h, w), original in zip(binary, sizes.tolist(), orig_sizes.tolist(), strict=True)
    ]
