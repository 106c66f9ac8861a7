"""How unlikely the right words are."""

import torch.nn.functional as F
from torch import Tensor


def caption_loss(logits: Tensor, captions: Tensor, mask: Tensor, per_sample: bool = False) -> Tensor:
    """Cross entropy of the words of captions after their first, weighted by a mask: sum(m CE) / count(m > 0).

    logits (B, T - 1, V), captions (B, T), mask (B, T): 0 behind the end, 1 or a word's weight before it. The sums go
    over the batch, or with per_sample over each caption: (B,). Without any word the loss is 0. Source: asg2cap,
    `caption/models/captionbase.py`.
    """
    losses = F.cross_entropy(logits.transpose(1, 2), captions[:, 1:], reduction="none")  # (B, T - 1)
    mask = mask[:, 1:]
    total, count = losses * mask, mask > 0
    if per_sample:
        return total.sum(1) / count.sum(1).clamp(min=1)
    return total.sum() / count.sum().clamp(min=1)
