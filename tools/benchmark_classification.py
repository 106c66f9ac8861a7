"""Fine-tuning a classifier beside timm in a bare loop, and whether the data keep ahead of it.

usage: python tools/benchmark_classification.py [SECTION ...] [--threads N] [--pairs N]     (default: all sections)

step   ViT-B/16, 224 pixels, 8 images: the task's training step and backward against timm's model on images that are
       normalised already
loop   an optimiser step of a tiny network under pl.Trainer with everything that is logged, against a bare loop with the
       same groups of parameters
data   pictures of 500 x 375 pixels read, augmented and batched by the image folders, against timm's transform in
       torchvision's ImageFolder, one process each; images a second

Both sides run in turns; the ratio is the median over pairs of CPU seconds, the wall time is printed beside it. Outputs
are compared first, so that a fast wrong answer fails.
"""

import argparse
import tempfile
import time
import warnings
from itertools import count
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import timm
import torch
import torch.nn.functional as F
from benchmark import paired
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder as TorchvisionFolder

from lightning_xai.callbacks.step_seed import StepSeed
from lightning_xai.cli.training import quieten
from lightning_xai.data.classification_batch import collate_classification
from lightning_xai.data.classification_transforms import FineTuneAugmentation
from lightning_xai.data.image_folder import ImageFolder
from lightning_xai.nets.vit import ViT
from lightning_xai.tasks.classification import ClassificationTask
from lightning_xai.tasks.layer_decay import layer_decay_groups
from lightning_xai.tasks.mae_recipe import IMAGENET_MEAN, IMAGENET_STD

BATCH = 8


def a_batch(size: int, images: int = BATCH) -> dict[str, torch.Tensor]:
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8)
    return {"images": pixels, "labels": torch.arange(images) % 5, "index": torch.arange(images)}


def step(pairs: int) -> None:
    torch.manual_seed(0)
    net = timm.create_model("vit_base_patch16_224", num_classes=12, global_pool="avg")
    task, batch = ClassificationTask(ViT(net), smoothing=0.1), a_batch(224)
    task.finite = lambda loss, batch, batch_idx: loss  # whose sum belongs to the trainer
    (images,) = task.prepare(batch)

    def ours() -> torch.Tensor:
        task.zero_grad()
        loss = task.training_step(batch, 0)
        loss.backward()
        return loss

    def peer() -> torch.Tensor:
        net.zero_grad()
        loss = F.cross_entropy(net(images), batch["labels"], label_smoothing=0.1)
        loss.backward()
        return loss

    torch.testing.assert_close(ours(), peer(), rtol=1e-5, atol=0)
    started = time.process_time()
    ours()
    rate = BATCH / (time.process_time() - started)
    paired("ViT-B/16 224, forward + backward", ours, peer, pairs)
    print(f"  {'about':<34} {rate:.1f} images are trained on in a second of CPU time")


def loop(pairs: int, steps: int = 600) -> None:
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2, "num_classes": 5}
    batches = DataLoader([a_batch(16)] * steps, batch_size=None)

    def ours() -> None:
        task = ClassificationTask(ViT(timm.create_model("vit_tiny_patch16_224", **sizes)), lr=1e-4, warmup_epochs=0)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=[StepSeed(0)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, batches)

    def peer() -> None:
        net = timm.create_model("vit_tiny_patch16_224", **sizes)
        groups = layer_decay_groups(net, ["blocks.0"], 0.75, 0.05)
        optimizer = torch.optim.AdamW([{"params": group["params"]} for group in groups], 1e-4, fused=True)
        mean, std = (255 * torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        for batch in batches:
            optimizer.zero_grad()
            images = (batch["images"] - mean) / std
            loss = F.cross_entropy(net(images), batch["labels"], label_smoothing=0.1)
            loss.backward()
            optimizer.step()

    paired("tiny network, one step", ours, peer, pairs, per=steps)


def data(pairs: int, pictures: int = 96) -> None:
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(pictures):
            place = Path(folder) / "abc"[i % 3]
            place.mkdir(exist_ok=True)
            smooth = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
            smooth.save(place / f"{i}.jpg", quality=90)
        mine = ImageFolder([Path(folder)], list("abc"), FineTuneAugmentation(224))
        recipe = {
            "auto_augment": "rand-m9-mstd0.5-inc1",
            "re_prob": 0.25,
            "re_mode": "pixel",
            "interpolation": "bicubic",
        }
        theirs = TorchvisionFolder(folder, create_transform(224, is_training=True, **recipe))

        epochs = count()

        def ours() -> None:
            epoch = next(epochs)  # whose augmentation is drawn anew, as the peer's is in each pass
            for start in range(0, pictures, BATCH):
                collate_classification([mine[epoch, i] for i in range(start, start + BATCH)])

        def peer() -> None:
            for start in range(0, pictures, BATCH):
                default_collate([theirs[i] for i in range(start, start + BATCH)])

        started = time.process_time()
        ours()
        rate = pictures / (time.process_time() - started)
        paired("one picture, read to batched", ours, peer, pairs, per=pictures)
        print(f"  {'about':<34} {rate:.0f} images are made in a second of CPU time")


SECTIONS = {"step": step, "loop": loop, "data": data}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    torch.set_num_threads(options.threads)
    quieten()
    warnings.filterwarnings("ignore")
    for name in options.sections or SECTIONS:
        print(f"{name} ({options.threads} threads)", flush=True)
        SECTIONS[name](options.pairs)


if __name__ == "__main__":
    main()
