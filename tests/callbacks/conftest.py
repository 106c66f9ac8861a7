"""A small detector with deformable attention that answers like a detection task, and two validation batches."""

import pytest
import pytorch_lightning as pl
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_xai.explain.explainable import Choice, Explained, Prediction
from lightning_xai.explain.targets import class_targets
from lightning_xai.nets.deformable_detr import DeformableDETR
from lightning_xai.nets.vit import ViT

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


class Pictures(Dataset):
    """16 pictures (3, 32, 32) of two classes: sample i is brighter left or right, its label is i % 2."""

    def __len__(self):
        return 16

    def __getitem__(self, key):
        index = key[1] if isinstance(key, tuple) else key
        image = torch.randint(0, 100, (3, 32, 32), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        image[:, :, 16 * (index % 2) :][..., :16] += 120
        return image, {"label": torch.tensor(index % 2), "index": torch.tensor(index)}


def collate(samples):
    images, targets = zip(*samples, strict=True)
    labels, index = (torch.stack([target[key] for target in targets]) for key in ("label", "index"))
    return {"images": torch.stack(images), "labels": labels, "index": index}


class ClassifierTask(pl.LightningModule):
    """A small ViT with dropout, explainable."""

    class_names = ("left", "right")

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        options = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 2}
        self.net = ViT(VisionTransformer(**options, proj_drop_rate=0.3, attn_drop_rate=0.3))

    def prepare(self, batch):
        return (batch["images"].float() / 128 - 1,)

    def explained(self, outputs, batch, choice="predicted", limit=None):
        found = Choice.parse(choice, ("predicted", "truth", "class"), 2, self.class_names)
        logits = outputs["logits"]
        classes = {"predicted": logits.detach().argmax(1), "truth": batch["labels"]}.get(found.kind)
        if classes is None:
            classes = torch.full((len(logits),), found.class_index)
        names = tuple(f"class {self.class_names[c]}" for c in classes.tolist())
        return Explained(class_targets(logits, classes), names, classes)

    def prediction(self, outputs, batch, sample):
        shares = outputs["logits"][sample].softmax(0)
        return Prediction(tuple(f"{name} {share:.2f}" for name, share in zip(self.class_names, shares, strict=True)))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(*self.prepare(batch))["logits"].float(), batch["labels"])

    def validation_step(self, batch, batch_idx):
        self.net(*self.prepare(batch))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 3e-3)


@pytest.fixture
def classifier():
    return ClassifierTask


@pytest.fixture
def classifier_batches():
    return lambda: DataLoader(Pictures(), batch_size=8, collate_fn=collate)
