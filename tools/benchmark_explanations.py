"""Cost of explanations: seconds and peak memory of every method beside a plain forward and the reference protocol.

usage: python tools/benchmark_explanations.py [SECTION ...] [--threads N] [--pairs N]     (default: all sections)

detr_320   DETR R50, 320x384: relevance of 10 detections of one image
detr_800   DETR R50, 800x1066: relevance of 10 detections of one image
vit        ViT-B/16, 224x224: relevance of one class of one image
rollout    ViT-B/16, 8 images: rollout by the row of the class token beside the product of matrices

The reference protocol is that of Chefer et al. 2021's programs, over transformers' networks: for each target a forward
pass with gradients everywhere, a backward pass down to the weights of the backbone, and a chain of N x N matrices.
Both networks have the same weights and the relevances are compared first. Seconds are CPU seconds, which other programs
disturb least, of calls in turns; a ratio is the median over the turns. Memory is what the process takes beyond what it
had, in physical pages, measured in a copy of the process (Linux).
"""

import argparse
import ctypes
import gc
import os
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_xai.explain.explanation import explain
from lightning_xai.explain.input_gradients import PixelFunction
from lightning_xai.explain.methods import METHODS, method
from lightning_xai.explain.recording import record
from lightning_xai.explain.targets import Targets, class_targets, detection_targets
from lightning_xai.nets.detr import DETR
from lightning_xai.nets.detr_checkpoints import load_checkpoint
from lightning_xai.nets.vit import ViT

QUERIES = 10
FORWARD, REFERENCE = "plain forward", "reference protocol"


def timed_in_turns(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """CPU seconds of each call in each turn, forward and backward through the list; a first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name in list(calls) if turn % 2 else reversed(list(calls)):
            start = time.process_time()
            calls[name]()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def peak_megabytes(call: Callable[[], object]) -> float | None:
    """Peak of physical pages during a call beyond those before it; None where the system cannot tell."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(call, sender))
    process.start()
    peak = receiver.recv()
    process.join()
    return peak


def _measure_peak(call: Callable[[], object], sender) -> None:
    torch.set_num_threads(1)  # the threads of the process that was copied are not there
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _pages("VmRSS")
    call()
    sender.send((_pages("VmHWM") - before) / 2**20)


def _pages(field: str) -> int:
    (kib,) = re.findall(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kib) * 1024


def print_costs(calls: dict[str, Callable[[], object]], turns: int) -> None:
    seconds = timed_in_turns(calls, turns)
    print(f"  {'':<26} {'seconds':>8} {'x forward':>10} {'reference /':>12} {'peak MB':>8}")
    for name, values in seconds.items():

        def ratio(of: str, values: list[float] = values) -> float:
            return statistics.median(a / b for a, b in zip(values, seconds[of], strict=True))

        peak = peak_megabytes(calls[name])
        memory = "-" if peak is None else f"{peak:.0f}"
        print(
            f"  {name:<26} {statistics.median(values):8.2f} {ratio(FORWARD):10.2f} {1 / ratio(REFERENCE):12.2f} "
            f"{memory:>8}",
            flush=True,
        )


def detr_320(turns: int) -> None:
    time_detr(320, 384, turns)


def detr_800(turns: int) -> None:
    time_detr(800, 1066, max(turns // 2, 1))


def time_detr(height: int, width: int, turns: int) -> None:
    from transformers import DetrConfig, DetrForObjectDetection

    torch.manual_seed(0)
    config = DetrConfig(num_labels=91, use_pretrained_backbone=False, attn_implementation="eager")
    peer, ours = DetrForObjectDetection(config).eval(), DETR().eval()
    for parameter in peer.parameters():  # random weights of the usual size make all queries alike
        parameter.data *= 1.5 if parameter.dim() == 2 else 1
    with tempfile.TemporaryDirectory() as folder:
        torch.save(peer.state_dict(), f"{folder}/peer.pth")
        load_checkpoint(ours, f"{folder}/peer.pth")
    images, mask = torch.randn(1, 3, height, width), torch.zeros(1, height, width, dtype=torch.bool)
    queries, samples = torch.arange(QUERIES), torch.zeros(QUERIES, dtype=torch.int64)

    def targets(outputs: dict) -> Targets:
        return detection_targets(outputs["pred_logits"], samples, queries, num_classes=91)

    def by(name: str) -> Callable[[], Tensor]:
        return lambda: explain(ours, (images, mask), targets, method(name)).relevance["image"]

    def reference() -> Tensor:
        return torch.stack([detr_reference(peer, images, query) for query in range(QUERIES)])

    @torch.no_grad()
    def forward() -> None:
        ours(images, mask)

    torch.testing.assert_close(by("generic_relevance")(), reference(), rtol=2e-2, atol=1e-6)
    calls = {FORWARD: forward, REFERENCE: reference, **{name: by(name) for name in explaining()}}
    print_costs(calls, turns)


def explaining() -> list[str]:
    """The registered methods, without those that by definition run the network dozens of times."""
    return [name for name in METHODS if not isinstance(method(name), PixelFunction)]


def detr_reference(peer: nn.Module, images: Tensor, query: int) -> Tensor:
    """Relevance (N,) of one query: equations 5 to 10 with whole matrices, after a forward and a full backward pass."""
    outputs = peer(images, output_attentions=True)
    maps = {kind: getattr(outputs, f"{kind}_attentions") for kind in ("encoder", "decoder", "cross")}
    for attention in (a for layers in maps.values() for a in layers):
        attention.retain_grad()
    logits = outputs.logits[0, query, :-1]
    peer.zero_grad()
    logits[logits.argmax()].backward(retain_graph=True)

    def head_average(attention: Tensor) -> Tensor:
        return (attention.grad * attention.detach()).clamp(min=0)[0].mean(0)

    def normalised(relevance: Tensor) -> Tensor:
        eye = torch.eye(len(relevance))
        return (relevance - eye) / (relevance - eye).sum(-1, keepdim=True) + eye

    image, own = torch.eye(maps["encoder"][0].shape[-1]), torch.eye(maps["decoder"][0].shape[-1])
    for attention in maps["encoder"]:
        image = image + head_average(attention) @ image
    crossed = torch.zeros(len(own), len(image))
    for self_attention, cross_attention in zip(maps["decoder"], maps["cross"], strict=True):
        average = head_average(self_attention)
        own, crossed = own + average @ own, crossed + average @ crossed
        added = normalised(own).T @ head_average(cross_attention) @ normalised(image)
        crossed = crossed + added.nan_to_num(0.0)
    return crossed[query]


def build_vits() -> tuple[ViT, nn.Module]:
    """timm's ViT-B/16 with its attention written out, as the peer, and the same one with fused attention, explained."""
    import timm

    torch.manual_seed(0)
    peer = timm.create_model("vit_base_patch16_224").eval()
    ours = timm.create_model("vit_base_patch16_224").eval()
    ours.load_state_dict(peer.state_dict())
    for block in peer.blocks:
        block.attn.fused_attn = False
    return ViT(ours).eval(), peer


def vit(turns: int) -> None:
    ours, peer = build_vits()
    images = torch.randn(1, 3, 224, 224)

    def targets(outputs: dict) -> Targets:
        return class_targets(outputs["logits"], rows=ours.readout(outputs))

    def by(name: str) -> Callable[[], Tensor]:
        return lambda: explain(ours, (images,), targets, method(name)).relevance["image"]

    @torch.no_grad()
    def forward() -> None:
        ours(images)

    def reference() -> Tensor:
        return vit_reference(peer, images)

    got, expected = by("generic_relevance")()[0, 1:], reference()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-7)
    calls = {FORWARD: forward, REFERENCE: reference, **{name: by(name) for name in explaining()}}
    print_costs(calls, turns)


def vit_reference(peer: nn.Module, images: Tensor) -> Tensor:
    """Relevance (patches,) of the predicted class of one image: R += mean_h relu(G A) R with whole matrices."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        inputs[0].retain_grad()
        kept.append(inputs[0])

    hooks = [block.attn.attn_drop.register_forward_hook(keep) for block in peer.blocks]
    logits = peer(images)[0]
    peer.zero_grad()
    logits[logits.argmax()].backward(retain_graph=True)
    for hook in hooks:
        hook.remove()
    relevance = torch.eye(kept[0].shape[-1])
    for attention in kept:
        relevance = relevance + (attention.grad * attention.detach()).clamp(min=0)[0].mean(0) @ relevance
    return relevance[0, 1:]


@torch.no_grad()
def rollout(turns: int) -> None:
    ours, _ = build_vits()
    images = torch.randn(8, 3, 224, 224)
    with record(ours) as recording:
        outputs = ours(images)
    targets = class_targets(outputs["logits"], rows=ours.readout(outputs))
    maps = [recording[site.module].probabilities for site in recording.sites]

    def row() -> Tensor:
        return method("rollout")(recording, targets)["image"]

    def matrix() -> Tensor:
        product = torch.eye(maps[0].shape[-1])
        for probabilities in maps:
            layer = probabilities.mean(1) + torch.eye(probabilities.shape[-1])
            product = (layer / layer.sum(-1, keepdim=True)) @ product
        return product[:, 0]

    torch.testing.assert_close(row(), matrix(), rtol=1e-4, atol=1e-7)
    seconds = timed_in_turns({"row": row, "matrix": matrix}, 3 * turns)
    ratio = statistics.median(m / r for m, r in zip(seconds["matrix"], seconds["row"], strict=True))
    milliseconds = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    print(
        f"  8 images, 12 layers: row {milliseconds['row']:.1f} ms, matrix {milliseconds['matrix']:.1f} ms, {ratio:.2f}x"
    )


def main() -> None:
    sections = {f.__name__: f for f in (detr_320, detr_800, vit, rollout)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(sections)}; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5, help="turns that are counted")
    options = parser.parse_args()
    unknown = set(options.sections) - set(sections)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(sections)}")
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {options.threads} threads, load average {os.getloadavg()[0]:.1f}")
    for name in options.sections or sections:
        print(name)
        sections[name](options.pairs)


if __name__ == "__main__":
    main()
