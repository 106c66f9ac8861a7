"""The learning rate of MAE's recipes, a function of where in the training a step is."""

import math


def scaled_rate(blr: float, images: int) -> float:
    """blr * images / 256, `images` being those of one update: batch size x accumulated batches x processes."""
    return blr * images / 256


def rate_at(epoch: float, lr: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """lr * epoch / warmup_epochs in the warm-up, then half a cosine from `lr` down to `min_lr` at `epochs`.

    epoch: epochs done so far, a fraction inside one; the first update of all has the rate 0. Source: He et al. 2021
    (Masked Autoencoders), `lr_sched.py`.
    """
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
