"""Mixing images in pairs, and the soft labels that go with it."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


class Mixing:
    """Mixup and CutMix of timm with random numbers drawn from torch's, so that a resumed run draws the same.

    The partner of image i is image B - 1 - i. Options are those of `timm.data.Mixup`. Raises ValueError for a batch
    with an odd number of images, whose middle one would be its own partner.
    """

    def __init__(
        self,
        num_classes: int,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        cutmix_minmax: tuple[float, float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        smoothing: float = 0.1,
    ):
        from timm.data import Mixup

        if mode not in ("batch", "pair", "elem"):
            raise ValueError(f"mixup_mode={mode!r} is unknown: it must be 'batch', 'pair' or 'elem'")
        self.timm = Mixup(
            mixup, cutmix, cutmix_minmax, prob, switch_prob, mode, label_smoothing=smoothing, num_classes=num_classes
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, h, w), mixed in place, and soft labels (B, C)."""
        self.check(len(images))
        with numpy_seeded(int(torch.randint(2**31 - 1, ()))):
            return self.timm(images, labels)

    def check(self, images: int) -> None:
        """Raise ValueError for a number of images in a batch that does not make pairs."""
        if images % 2:
            raise ValueError(
                f"a batch of {images} images cannot be mixed in pairs: use an even batch_size and drop_last=True, "
                "or set mixup and cutmix to 0"
            )


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """NumPy's global generator seeded inside, and afterwards as it was."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
