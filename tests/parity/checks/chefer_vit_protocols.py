"""The two tests of explanations of vision transformers: removing pixels, and segmenting the object."""

import torch
from reference_arrays import compare_defined, measured, tolerate
from torch import Tensor

from checks import check
from checks.chefer_vit import build, image_maps
from lightning_xai.evaluate.perturbation import area_under_curve, perturbation_scores
from lightning_xai.evaluate.segmentation import (
    SegmentationTest,
    foreground,
    segmentation_average_precision,
    segmentation_counts,
    segmentation_f1,
)
from lightning_xai.explain.explanation import min_max

TESTS = {"neg": "negative", "pos": "positive"}
HUNDRED_STEPS = range(5, 50, 5)  # the scale called 100: 100 pixels times each of these
SCORES = ("hits", "dissimilarities", "logit_diff", "prob_diff")
MEAN = STD = 0.5


@check("chefer/vit_perturbation")
def vit_perturbation(case):
    tolerate(case, lambda name: (0.0 if "hits" in name else 1e-4, 0.0))
    net = build(case)
    images, relevance = case.inputs["data"], case.inputs["vis"][:, 0]

    def classify(images: Tensor) -> Tensor:
        return net((images - MEAN) / STD)["logits"]

    with torch.no_grad():
        predicted = classify(images).argmax(1)
    case.compare("pred", predicted)
    # the targets are given to the test: they are the predicted classes where the case says that these are right
    case.compare("target", predicted, where=case.outputs["model_hits"] == 1)
    pixels = relevance[0].numel()
    for scale, counts in {
        "per": [int(pixels * step) for step in case.config["steps_per"]],
        "100": [100 * step for step in HUNDRED_STEPS],
    }.items():
        for suffix, test in TESTS.items():
            scores = perturbation_scores(classify, images, relevance, case.outputs["target"], test, counts)
            for name in SCORES:
                case.compare(f"perturbations_{name}_{scale}_{suffix}", scores[name][:, 1:].T)
            case.compare("model_hits", scores["hits"][:, 0])
            case.compare("model_dissimilarities", scores["dissimilarities"][:, 0])
            if scale == "per":
                area = area_under_curve(scores["hits"].double().mean(0), case.config["steps_per"])
                case.compare(f"auc_per_{suffix}", torch.tensor([area]))


@check("chefer/vit_segmentation")
def vit_segmentation(case):
    labels = case.inputs["labels"]

    def allowed(name: str) -> tuple[float, float]:
        share = 0.02 if name.endswith("full_lrp") else 1e-4
        counted = name.startswith(("correct", "labeled", "inter", "union"))
        return max(share * (labels[0].numel() if counted else 1), 10 * measured(case, name, "measured_abs")), 0.0

    tolerate(case, allowed)
    images = case.inputs["image"]
    for method in (name.removeprefix("summary_") for name in case.outputs if name.startswith("summary_")):
        relevance = torch.cat([image_maps(case, method, image[None]) for image in images]).float()
        mask = foreground(relevance)
        counts = segmentation_counts(mask, labels)
        for theirs, ours in {"correct": "correct", "labeled": "labelled"}.items():
            case.compare(f"{theirs}_{method}", counts[ours][:, None].float())
        for theirs, ours in {"inter": "intersection", "union": "union"}.items():
            case.compare(f"{theirs}_{method}", counts[ours].float())
        case.compare(f"ap_{method}", segmentation_average_precision(relevance, labels)[:, None])
        case.compare(f"f1_{method}", segmentation_f1(mask, labels, by_row=True)[:, None])
        if f"map_{method}" in case.outputs:
            compare_defined(case, f"map_{method}", min_max(relevance)[:, 8::16, 8::16])
        test = SegmentationTest(f1_by_row=True)
        test.update(range(len(images)), relevance, labels)
        numbers = test.compute()
        case.compare(f"summary_{method}", torch.tensor([numbers[n] for n in ("pixel_accuracy", "mIoU", "mAP", "mF1")]))
