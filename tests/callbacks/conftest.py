"""A small detector with deformable attention that answers like a detection task, and two validation batches."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_xai.nets.deformable_detr import DeformableDETR

NAMES = ["", "circle", "square"]


def small_detector(seed=0, **changes):
    torch.manual_seed(seed)
    arguments = {
        "num_classes": 3,
        "backbone": "resnet18",
        "hidden_dim": 32,
        "num_heads": 2,
        "num_feature_levels": 3,
        "num_encoder_layers": 1,
        "num_decoder_layers": 2,
        "dim_feedforward": 32,
        "dropout": 0.1,
        "encoder_points": 2,
        "decoder_points": 2,
        "num_queries": 6,
    }
    net = DeformableDETR(**{**arguments, **changes})
    for name, parameter in net.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            nn.init.normal_(parameter, std=0.5)
    return net


class SmallTask(pl.LightningModule):
    """The duck type that callbacks work on, trained on nothing in particular."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.class_names = NAMES

    def forward(self, images, mask):
        return self.net(images, mask)

    def prepare(self, batch):
        return batch["images"].float() / 255 - 0.5, batch["mask"]

    def detections(self, outputs, sizes):
        found = []
        for logits, boxes, (h, w) in zip(outputs["pred_logits"], outputs["pred_boxes"], sizes.tolist(), strict=True):
            scores, labels = logits.sigmoid().max(-1)
            order = scores.argsort(descending=True)
            centre, half = boxes[:, :2], boxes[:, 2:] / 2
            xyxy = torch.cat([centre - half, centre + half], -1) * torch.tensor([w, h, w, h])
            found.append({"scores": scores[order], "labels": labels[order], "boxes": xyxy[order], "queries": order})
        return found

    def training_step(self, batch, batch_idx):
        outputs = self(*self.prepare(batch))
        return outputs["pred_boxes"].square().mean() + outputs["pred_logits"].square().mean()

    def validation_step(self, batch, batch_idx):
        self(*self.prepare(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


def batches(ids=((30, 10), (20, 40))):
    """Batches of two images of 64 × 80 and 48 × 64 in 64 × 80, with the given ids."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for pair in ids:
        images = torch.randint(0, 255, (2, 3, 64, 80), dtype=torch.uint8, generator=generator)
        mask = torch.zeros(2, 64, 80, dtype=torch.bool)
        mask[1, 48:], mask[1, :, 64:] = True, True
        images = images.masked_fill(mask[:, None], 0)
        targets = [
            {
                "image_id": torch.tensor(identity),
                "boxes": torch.tensor([[4.0, 4, 20, 20], [10, 8, 50, 44]]),
                "labels": torch.tensor([1, 2]),
                "size": torch.tensor(size),
            }
            for identity, size in zip(pair, ((64, 80), (48, 64)), strict=True)
        ]
        made.append({"images": images, "mask": mask, "targets": targets})
    return DataLoader(made, batch_size=None)


@pytest.fixture
def detector():
    return small_detector


@pytest.fixture
def task():
    def make(seed=0, **changes):
        return SmallTask(small_detector(seed, **changes))

    return make


@pytest.fixture
def validation_batches():
    return batches


@pytest.fixture
def trainer(tmp_path):
    def make(**options):
        defaults = {
            "default_root_dir": tmp_path,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": 1,
        }
        return pl.Trainer(**{**defaults, **options})

    return make
