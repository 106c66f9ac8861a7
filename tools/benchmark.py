"""Training speed beside named peers, side by side in one process.

usage: python tools/benchmark.py [SECTION ...] [--threads N] [--pairs N]     (default: all sections)

network       Deformable DETR R50 against transformers' DeformableDetrForObjectDetection: forward, and training step
              with matching, losses and AdamW
augmentation  one training picture against DETR's Pillow pipeline
loop          a step under pl.Trainer with everything that is logged, against the same step in a bare loop
matching      Hungarian matching of all decoder layers against the all-against-all formulation
rendering     drawing the embedded world's scenes, alone
operator      a training step of the demo with every path of ms_deform_attn in turns, and the operator's share of it

Both sides run in turns (A B, B A, ...); the ratio is the median over pairs of CPU seconds, which other programs disturb
least, and the wall time is printed beside it. Outputs are compared first, so that a fast wrong answer fails.
"""

import argparse
import io
import logging
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from ms_deform_attn import available_paths, use_path
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou
from torchvision.transforms import functional as pillow_transforms

from lightning_xai.callbacks.step_seed import StepSeed
from lightning_xai.data.coco_detection import detection_target
from lightning_xai.data.detection_transforms import SCALES, Draws, TrainingTransform, resized_shape
from lightning_xai.data.embedded_detection import EmbeddedDetectionModule
from lightning_xai.data.picture_file import decode_picture
from lightning_xai.data.render_scene import render
from lightning_xai.data.scene import SceneRecipe, sample_scene
from lightning_xai.nets.deformable_detr import DeformableDETR
from lightning_xai.nets.deformable_detr_checkpoints import load_checkpoint
from lightning_xai.tasks.detection import DetectionTask, relative_targets
from lightning_xai.tasks.detection_losses import SetCriterion
from lightning_xai.tasks.matching import HungarianMatcher, PackedTargets
from lightning_xai.tasks.parameter_groups import make_optimizer, parameter_groups

OPERATORS = {f"ms_deform_attn::{name}" for name in ("forward", "backward", "fused_forward", "fused_backward")}


def paired(name: str, ours: Callable[[], object], peer: Callable[[], object], pairs: int, per: int = 1) -> None:
    """Time both in turns and print milliseconds and the ratio peer / ours."""
    ours(), peer()
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    for pair in range(pairs):
        for which in ("ours", "peer") if pair % 2 else ("peer", "ours"):
            cpu, wall = time.process_time(), time.perf_counter()
            (ours if which == "ours" else peer)()
            seconds[which].append((time.process_time() - cpu, time.perf_counter() - wall))
    ratio = statistics.median(p[0] / o[0] for o, p in zip(seconds["ours"], seconds["peer"], strict=True))
    wall_ratio = statistics.median(p[1] / o[1] for o, p in zip(seconds["ours"], seconds["peer"], strict=True))
    cpu, wall = ({k: 1000 / per * statistics.median(t[i] for t in v) for k, v in seconds.items()} for i in (0, 1))
    print(
        f"  {name:<34} ours {cpu['ours']:9.2f} ms cpu {wall['ours']:9.2f} wall | peer {cpu['peer']:9.2f} cpu "
        f"{wall['peer']:9.2f} wall | {ratio:5.2f}x cpu, {wall_ratio:5.2f}x wall",
        flush=True,
    )


def network(pairs: int) -> None:
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    torch.manual_seed(0)
    config = DeformableDetrConfig(num_labels=91, use_pretrained_backbone=False, auxiliary_loss=True)
    peer, ours = DeformableDetrForObjectDetection(config).eval(), DeformableDETR().eval()
    with tempfile.TemporaryDirectory() as folder:
        torch.save(peer.state_dict(), f"{folder}/peer.pth")
        load_checkpoint(ours, f"{folder}/peer.pth")
    time_network(ours, peer, 480, 640, pairs)
    time_network(ours, peer, 800, 1333, max(pairs // 2, 1))


def time_network(ours: nn.Module, peer: nn.Module, height: int, width: int, pairs: int) -> None:
    images, mask = torch.randn(1, 3, height, width), torch.zeros(1, height, width, dtype=torch.bool)
    valid = (~mask).long()

    @torch.no_grad()
    def forward(net: nn.Module, mask: Tensor) -> dict:
        return net(images, mask)

    boxes, labels = 0.3 * torch.rand(8, 4) + 0.3, torch.randint(91, (8,))
    optimizers = {net: torch.optim.AdamW(net.parameters(), 1e-6, fused=True) for net in (ours, peer)}
    criterion = SetCriterion(HungarianMatcher())

    def step(net: nn.Module, loss: Callable[[], Tensor]) -> None:
        optimizers[net].zero_grad()
        loss().backward()
        optimizers[net].step()

    def our_loss() -> Tensor:
        return criterion(ours(images, mask), [{"boxes": boxes, "labels": labels}]).total

    def peer_loss() -> Tensor:
        return peer(images, valid, labels=[{"boxes": boxes, "class_labels": labels}]).loss

    ours.eval(), peer.eval()
    torch.testing.assert_close(forward(ours, mask)["pred_boxes"], forward(peer, valid)["pred_boxes"], atol=1e-4, rtol=0)
    paired(f"forward {height}x{width}", lambda: forward(ours, mask), lambda: forward(peer, valid), pairs)
    ours.train(), peer.train()
    name = f"training step {height}x{width}"
    paired(name, lambda: step(ours, our_loss), lambda: step(peer, peer_loss), pairs)


def pillow_augmentation(picture: Image.Image, boxes: Tensor, draws: random.Random) -> tuple[Tensor, Tensor]:
    """DETR's published training augmentation: Pillow pictures, float tensors, normalised on the CPU."""

    def resize(picture: Image.Image, boxes: Tensor, short_side: int, longest: int | None):
        height, width = resized_shape((picture.height, picture.width), short_side, longest)
        scale = torch.tensor([width / picture.width, height / picture.height] * 2)
        return picture.resize((width, height), Image.Resampling.BILINEAR), boxes * scale

    if draws.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([picture.width, 0] * 2)
    if draws.random() >= 0.5:
        picture, boxes = resize(picture, boxes, draws.choice((400, 500, 600)), None)
        width, height = (draws.randint(384, min(side, 600)) for side in picture.size)
        top, left = draws.randint(0, picture.height - height), draws.randint(0, picture.width - width)
        picture = picture.crop((left, top, left + width, top + height))
        boxes = (boxes - torch.tensor([left, top] * 2)).reshape(-1, 2, 2)
        boxes = torch.min(boxes, torch.tensor([width, height])).clamp(min=0)
        boxes = boxes[(boxes[:, 1] > boxes[:, 0]).all(dim=1)].flatten(1)
    picture, boxes = resize(picture, boxes, draws.choice(SCALES), 1333)
    image = pillow_transforms.to_tensor(picture)
    image = pillow_transforms.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return image, box_convert(boxes, "xyxy", "cxcywh") / torch.tensor([picture.width, picture.height] * 2)


def augmentation(pairs: int) -> None:
    rng = np.random.default_rng(0)
    files = []
    for _ in range(12):
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    boxes = torch.tensor(rng.uniform(10, 200, (7, 4)), dtype=torch.float32)
    ones = torch.ones(7, dtype=torch.int64)
    target = detection_target(boxes, ones, boxes[:, 2] * boxes[:, 3], 0 * ones, (480, 640))
    transform = TrainingTransform()
    pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    tensors = [decode_picture(torch.frombuffer(bytearray(file), dtype=torch.uint8), "benchmark") for file in files]
    seeds = {"ours": 0, "peer": 0}

    def ours(decode: bool) -> None:
        seeds["ours"] += 1
        for i, file in enumerate(files):
            image = tensors[i]
            if decode:
                image = decode_picture(torch.frombuffer(bytearray(file), dtype=torch.uint8), "benchmark")
            transform(image, target, Draws(100 * seeds["ours"] + i))

    def peer(decode: bool) -> None:
        seeds["peer"] += 1
        for i, file in enumerate(files):
            picture = Image.open(io.BytesIO(file)).convert("RGB") if decode else pictures[i]
            pillow_augmentation(picture, target["boxes"], random.Random(100 * seeds["peer"] + i))

    for decode in (False, True):
        name = "decoding and augmentation" if decode else "augmentation"
        paired(f"{name}, 640x480", lambda d=decode: ours(d), lambda d=decode: peer(d), 3 * pairs, per=len(files))


class FixedPredictions(nn.Module):
    """A network that costs nothing: what remains of a step is the losses and the loop."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(layers, 8, 6))
        self.boxes = nn.Parameter(torch.randn(layers, 8, 4))

    def forward(self, images: Tensor, mask: Tensor) -> dict:
        layers = [
            {
                "pred_logits": logits.expand(len(images), -1, -1),
                "pred_boxes": boxes.sigmoid().expand(len(images), -1, -1),
            }
            for logits, boxes in zip(self.logits, self.boxes, strict=True)
        ]
        return layers[-1] | {"aux_outputs": layers[:-1]}


class EpochClock(pl.Callback):
    """CPU seconds of the training epoch."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.process_time()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.process_time() - self.started


def loop(pairs: int, steps: int = 512) -> None:
    torch.manual_seed(0)
    size = torch.tensor([32, 32])
    target = {"boxes": torch.tensor([[2.0, 2, 10, 10], [5, 5, 20, 30]]), "labels": torch.tensor([1, 2])}
    target |= {"size": size, "orig_size": size, "image_id": torch.tensor(0)}
    images, mask = torch.randint(255, (4, 3, 32, 32), dtype=torch.uint8), torch.zeros(4, 32, 32, dtype=torch.bool)
    batches = [{"images": images, "mask": mask, "targets": [target] * 4}] * steps
    loader = torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)

    def lightning(folder: str) -> float:
        """CPU seconds from the first batch to the last."""
        task, clock = DetectionTask(FixedPredictions(), schedule="cosine"), EpochClock()
        quiet = {"enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
        logger, callbacks = pl.loggers.CSVLogger(folder), [StepSeed(0), clock]
        options = {"accelerator": "cpu", "logger": logger, "log_every_n_steps": 50, "callbacks": callbacks}
        pl.Trainer(max_epochs=1, **options, **quiet).fit(task, loader)
        return clock.seconds

    def bare() -> float:
        task = DetectionTask(FixedPredictions())
        optimizer = make_optimizer(parameter_groups(task.net), "adamw", fused=True)
        start = time.process_time()
        for batch in loader:
            losses = task.criterion(task(*task.prepare(batch)), relative_targets(batch["targets"]))
            optimizer.zero_grad()
            losses.total.backward()
            nn.utils.clip_grad_norm_(task.net.parameters(), 0.1)
            optimizer.step()
        return time.process_time() - start

    with tempfile.TemporaryDirectory() as folder:
        lightning(folder), bare()
        runs = [(lightning(folder), bare()) for _ in range(pairs)]
    overhead = statistics.median(1000 * (ours - alone) / steps for ours, alone in runs)
    print(f"  Lightning's overhead per step, all losses logged every 50 steps: {overhead:.2f} ms cpu")


def all_against_all(logits: Tensor, boxes: Tensor, targets: list[dict]) -> list:
    """DETR's formulation: costs of every query of the batch against every object of the batch, one layer at a time."""
    labels, wanted = (torch.cat([target[name] for target in targets]) for name in ("labels", "boxes"))
    counts = [len(target["labels"]) for target in targets]
    matched = []
    for layer_logits, layer_boxes in zip(logits, boxes, strict=True):
        p, predicted = layer_logits.flatten(0, 1).sigmoid(), layer_boxes.flatten(0, 1)
        negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
        positive = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
        cost = 2 * (positive[:, labels] - negative[:, labels]) + 5 * torch.cdist(predicted, wanted, p=1)
        xyxy = (box_convert(b, "cxcywh", "xyxy") for b in (predicted, wanted))
        cost = (cost - 2 * generalized_box_iou(*xyxy)).view(*layer_boxes.shape[:2], -1)
        matched.append([linear_sum_assignment(c[i]) for i, c in enumerate(cost.split(counts, -1))])
    return matched


def matching(pairs: int) -> None:
    for batch, queries, objects in ((2, 300, 8), (4, 300, 20), (4, 900, 100)):
        time_matching(6, batch, queries, objects, pairs)


def time_matching(layers: int, batch: int, queries: int, objects: int, pairs: int) -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(layers, batch, queries, 91) - 2
    boxes = 0.4 * torch.rand(layers, batch, queries, 4) + 0.2
    targets = [
        {"labels": torch.randint(91, (objects,)), "boxes": 0.4 * torch.rand(objects, 4) + 0.2} for _ in range(batch)
    ]
    matcher, packed = HungarianMatcher(), PackedTargets.pack(targets, logits.device, 91)
    found, expected = matcher(logits, boxes, packed), all_against_all(logits, boxes, targets)
    for layer in range(layers):
        for image in range(batch):
            for mine, theirs in zip(found.of(layer, image), expected[layer][image], strict=True):
                assert mine.tolist() == theirs.tolist(), "the two formulations match differently"
    name = f"{layers} layers, B={batch}, Q={queries}, {objects} objects"
    paired(name, lambda: matcher(logits, boxes, packed), lambda: all_against_all(logits, boxes, targets), 3 * pairs)


def rendering(pairs: int, scenes: int = 200) -> None:
    times = []
    for repetition in range(pairs):
        start = time.process_time()
        for index in range(scenes):
            render(sample_scene(SceneRecipe(), repetition, "train", index))
        times.append((time.process_time() - start) / scenes)
    print(f"  a scene of 128x128, sampled and drawn with masks and boxes: {1000 * statistics.median(times):.2f} ms cpu")


def operator(pairs: int) -> None:
    config = yaml.safe_load((Path(__file__).parents[1] / "configs" / "demo.yaml").read_text())
    net = config["model"]["init_args"]["net"]["init_args"]
    data = config["data"]["init_args"]
    module = EmbeddedDetectionModule(
        SceneRecipe(**data["recipe"]["init_args"]), n_train=64, batch_size=data["batch_size"]
    )
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    torch.manual_seed(0)
    task = DetectionTask(DeformableDETR(**net))
    optimizer = make_optimizer(parameter_groups(task.net), "adamw", fused=True)

    def step() -> None:
        losses = task.criterion(task(*task.prepare(batch)), relative_targets(batch["targets"]))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()

    paths = available_paths(torch.device("cpu"))
    times: dict[str, list[float]] = {path: [] for path in paths}
    for turn in range(pairs + 1):
        for path in paths if turn % 2 else reversed(paths):
            with use_path(path):
                start = time.perf_counter()
                step()
                times[path].append(time.perf_counter() - start)
    for path in paths:
        with use_path(path), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step()
        events = profile.key_averages()
        inside = sum(e.cpu_time_total for e in events if e.key in OPERATORS)
        total = sum(e.self_cpu_time_total for e in events)
        milliseconds = 1000 * statistics.median(times[path][1:])
        print(f"  demo's training step, {path:<14} {milliseconds:7.1f} ms, {inside / total:5.1%} of it in the operator")


def main() -> None:
    sections = {f.__name__: f for f in (network, augmentation, loop, matching, rendering, operator)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(sections)}; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    unknown = set(options.sections) - set(sections)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(sections)}")
    torch.set_num_threads(options.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {options.threads} threads, load average {os.getloadavg()[0]:.1f}")
    for name in options.sections or sections:
        print(name)
        sections[name](options.pairs)


if __name__ == "__main__":
    main()
