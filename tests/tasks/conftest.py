"""A detector of a few hundred parameters, and batches for it."""

import pytest
import torch
from torch import Tensor, nn


class TinyDetector(nn.Module):
    """Two layers of Q queries that see nothing but the mean colour of the picture."""

    def __init__(self, queries: int = 6, classes: int = 4):
        super().__init__()
        self.backbone = nn.ModuleList([nn.Conv2d(3, 8, 3, stride=4)])
        self.reference_points = nn.Linear(8, 8)
        self.class_embed = nn.Linear(8, 2 * queries * classes)
        self.bbox_embed = nn.Linear(8, 2 * queries * 4)
        self.queries, self.classes = queries, classes

    def forward(self, images: Tensor, mask: Tensor) -> dict:
        features = self.reference_points(self.backbone[0](images).mean((2, 3)).tanh())
        logits = self.class_embed(features).view(len(images), 2, self.queries, self.classes).unbind(1)
        boxes = self.bbox_embed(features).view(len(images), 2, self.queries, 4).sigmoid().unbind(1)
        first, last = ({"pred_logits": lo, "pred_boxes": b} for lo, b in zip(logits, boxes, strict=True))
        return {**last, "aux_outputs": [first]}


def tiny_batch(ids: list[int], size: tuple[int, int] = (32, 40), classes: int = 4) -> dict:
    """Pictures of random bytes with (id % 3) objects each; the last one is padded by 8 columns."""
    height, width = size
    images, targets = [], []
    for image_id in ids:
        generator = torch.Generator().manual_seed(image_id)
        images.append(torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8))
        count = image_id % 3
        low = torch.rand(count, 2, generator=generator) * 15
        boxes = torch.cat([low, low + 2 + torch.rand(count, 2, generator=generator) * 13], 1)
        objects = {
            "boxes": boxes,
            "labels": torch.randint(0, classes, (count,), generator=generator),
            "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
            "iscrowd": torch.zeros(count, dtype=torch.int64),
        }
        truth = {**objects, "boxes": 2 * boxes, "area": 4 * objects["area"]}
        sizes = {"size": torch.tensor([height, width]), "orig_size": torch.tensor([2 * height, 2 * width])}
        targets.append({**objects, **sizes, "image_id": torch.tensor(image_id), "ground_truth": truth})
    mask = torch.zeros(len(ids), height, width, dtype=torch.bool)
    mask[-1, :, -8:] = True
    targets[-1]["size"] = torch.tensor([height, width - 8])
    targets[-1]["orig_size"] = 2 * targets[-1]["size"]
    return {"images": torch.stack(images), "mask": mask, "targets": targets}


def tiny_net(seed: int = 0, **arguments) -> TinyDetector:
    torch.manual_seed(seed)
    return TinyDetector(**arguments)


@pytest.fixture
def make_net():
    return tiny_net


@pytest.fixture
def make_batch():
    return tiny_batch
