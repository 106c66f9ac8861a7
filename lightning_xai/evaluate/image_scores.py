"""Numbers of single images, each counted once however many processes saw it."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class ImageScores:
    """A few numbers an image, collected over batches and processes."""

    def __init__(self) -> None:
        self._images: dict[int, dict[str, Tensor]] = {}

    def add(self, image_ids: Sequence[int], scores: Mapping[str, Tensor]) -> None:
        """Add images; an id that is already there is ignored. scores: by name, (B, ...)."""
        kept = {name: values.detach().cpu() for name, values in scores.items()}
        for name, values in kept.items():
            if len(values) != len(image_ids):
                raise ValueError(f"{len(image_ids)} image ids, but {name} of {len(values)} images")
        for i, image_id in enumerate(image_ids):
            self._images.setdefault(int(image_id), {name: values[i].clone() for name, values in kept.items()})

    def gathered(self) -> dict[str, Tensor]:
        """By name, the numbers of all images in the order of their ids; a collective call, the same on each process."""
        parts = [self._images]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            parts = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, self._images)
        images: dict[int, dict[str, Tensor]] = {}
        for part in parts:
            for image_id, scores in part.items():
                images.setdefault(image_id, scores)
        if not images:
            raise ValueError("no image was evaluated: call update before compute")
        ordered = [images[image_id] for image_id in sorted(images)]
        return {name: torch.stack([scores[name] for scores in ordered]) for name in ordered[0]}
