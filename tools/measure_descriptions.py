"""How often a description names what a detector found, by what its regions were taken from.

usage: python tools/measure_descriptions.py --config runs/demo/config.yaml --ckpt runs/demo/checkpoints/best.ckpt \\
           --captioner runs/demo_captions/config.yaml --captioner_ckpt runs/demo_captions/checkpoints/best.ckpt \\
           --scenes 80 --method attn_lrp random -- --data.recipe.max_rotation 20

What the detector finds in drawn validation scenes is explained; regions of the explanation, and for comparison the
found boxes themselves, are captioned; the n-th noun of the sentence is compared with the class of the n-th region.
Options of the detector's configuration come behind --.
"""

import argparse
from pathlib import Path

import torch

from lightning_xai.cli.checkpointed import configured_with_weights
from lightning_xai.cli.explained_regions import explained_regions
from lightning_xai.data.region_graph import region_graph
from lightning_xai.explain.methods import method


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("config", "ckpt", "captioner", "captioner_ckpt"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=80)
    parser.add_argument("--method", nargs="+", default=["attn_lrp", "raw_attention", "generic_relevance", "random"])
    parser.add_argument("options", nargs="*", help="further options of the detector's configuration, behind --")
    options = parser.parse_args()
    detector = configured_with_weights(["--config", str(options.config), *options.options], options.ckpt)
    captioner = configured_with_weights(["--config", str(options.captioner)], options.captioner_ckpt)
    task, module = captioner.model, captioner.datamodule
    task.use_vocabulary(module.vocabulary)
    print(f"{'regions from':<24} {'regions':>8} {'named as found':>15}")
    for name, from_boxes in [("boxes", True), *((name, False) for name in options.method)]:
        explained_by = ("centre", method("centre")) if from_boxes else (name, method(name))
        count = named = 0
        for index in range(options.scenes):
            picture = detector.datamodule.val_set.load(index)[0]
            try:
                found = explained_regions(detector, picture, explained_by, from_boxes=from_boxes)
            except LookupError:  # the detector found nothing
                continue
            regions = len(found.boxes)
            graph = region_graph(found.names, found.boxes, [1] * regions, min(1, regions - 1), picture.shape[1:])
            with torch.inference_mode():
                sentence = task.captions(module.graph_batch(picture, graph)["graph"])[0][0].text
            nouns = [word for word in sentence.split() if word in module.recipe.shapes]
            count += regions
            named += sum(noun == name for noun, name in zip(nouns, found.names, strict=False))
        print(f"{name:<24} {count:>8} {named / max(count, 1):>15.1%}", flush=True)


if __name__ == "__main__":
    main()
