"""The detection data pipeline: annotations, augmentation and the order of samples."""

import re

import torch

from checks import check
from lightning_xai.data import samplers
from lightning_xai.data.coco_detection import detection_target
from lightning_xai.data.detection_batch import collate_detection
from lightning_xai.data.detection_transforms import (
    Draws,
    EvaluationTransform,
    TrainingTransform,
    crop,
    horizontal_flip,
    resample_as_pillow,
    resize,
    resized_shape,
)
from lightning_xai.tasks.detection import DetectionTask, relative_targets

FIELDS = ["boxes", "labels", "area", "iscrowd", "size", "orig_size"]


def as_image(array):
    return array.to(torch.uint8).permute(2, 0, 1)


def normalised(image):
    """The floats that the network gets of one picture: our pictures become floats in the task, on its device."""
    return as_network_gets(collate_detection([(image, {})]))[0]


def as_network_gets(batch):
    return DetectionTask(torch.nn.Identity()).prepare(batch)[0]


def relative(target):
    """The target as the losses get it: boxes cxcywh in [0, 1]."""
    return relative_targets([target])[0]


def compare_target(case, prefix, target):
    for field in FIELDS:
        if f"{prefix}_{field}" in case.outputs:
            case.compare(f"{prefix}_{field}", target[field])


@check("deformable_detr/transforms")
def transforms(case):
    given = case.inputs
    case.compare(
        "resize_hw",
        torch.tensor([resized_shape((h, w), size, top or None) for w, h, size, top in given["resize_query"].tolist()]),
    )
    image = as_image(given["image_u8"])
    target = detection_target(
        given["anno_bbox"], given["anno_category_id"], given["anno_area"], given["anno_iscrowd"], image.shape[1:]
    )
    compare_target(case, "prepare", target)

    up = resized_shape(image.shape[1:], *resize_arguments(case, "resize_up"))
    down = resized_shape(image.shape[1:], *resize_arguments(case, "resize_down"))
    steps = {
        "hflip": horizontal_flip(image, target),
        "crop": crop(image, target, tuple(given["crop_region"].tolist())),
        "resize_up": resize(image, target, up, resample_as_pillow),
        "resize_down": resize(image, target, down, resample_as_pillow),
    }
    for name, (changed, changed_target) in steps.items():
        compare_target(case, name, changed_target)
        case.compare(f"{name}_image", changed.permute(1, 2, 0))

    compare_target(case, "normalise", relative(target))
    case.compare("normalise_image", normalised(image))

    scales, max_size = case.config["scales"], case.config["max_size"]
    evaluation = EvaluationTransform(max(scales), max_size, resample_as_pillow)
    changed, changed_target = evaluation(image, target)
    compare_target(case, "val", relative(changed_target))
    case.compare("val_image_every37", normalised(changed)[:, ::37, ::37])
    case.compare("val_image_shape", torch.tensor(changed.shape))

    crop_scales, crop_range = re.findall(r"\(\[?([\d, ]+)", case.config["crop"])
    training = TrainingTransform(
        scales, max_size, [int(s) for s in crop_scales.split(",")], [int(s) for s in crop_range.split(",")],
        resample=resample_as_pillow,
    )  # fmt: skip
    image = as_image(given["train_image_u8"])
    crowd = torch.zeros_like(given["train_anno_category_id"])
    target = detection_target(
        given["train_anno_bbox"], given["train_anno_category_id"], given["train_anno_area"], crowd, image.shape[1:]
    )
    for name in case.outputs:
        if match := re.fullmatch(r"train(\d+)_image_every(\d+)", name):
            draw, every = int(match[1]), int(match[2])
            changed, changed_target = training(image, target, Draws(1000 * case.info["seed"] + draw))
            compare_target(case, f"train{draw}", relative(changed_target))
            case.compare(name, normalised(changed)[:, ::every, ::every])

    image = as_image(given["image_u8"])
    corners = re.findall(r"\[:, :(\d+), :(\d+)\]", case.info["outputs"]["collate_tensor_sum"])
    batch = collate_detection([(image[:, : int(bottom), : int(right)], {}) for bottom, right in corners])
    padded = as_network_gets(batch)
    case.compare("collate_tensor_sum", padded.sum(dim=(2, 3)))
    case.compare("collate_shape", torch.tensor(padded.shape))
    case.compare("collate_mask", batch["mask"])


def resize_arguments(case, name):
    """Short side and longest side as the case's own description states them."""
    size, longest = re.search(r"resize\((\d+), (?:no max|max (\d+))\)", case.info["outputs"][f"{name}_image"]).groups()
    return int(size), longest and int(longest)


@check("deformable_detr/samplers")
def sampler_orders(case):
    for name in case.outputs:
        kind, n, replicas, local_size, epoch, mode = re.fullmatch(
            r"(dist|node)_n(\d+)_r(\d+)(?:_l(\d+))?_e(\d+)_(shuf|seq)", name
        ).groups()
        ranks = range(int(replicas))
        arguments = {"length": int(n), "epoch": int(epoch), "replicas": int(replicas), "shuffle": mode == "shuf"}
        if kind == "dist":
            orders = [samplers.contiguous_order(rank=rank, **arguments) for rank in ranks]
        else:
            size = int(local_size)
            orders = [
                samplers.node_order(rank=rank, local_rank=rank % size, local_size=size, **arguments) for rank in ranks
            ]
        case.compare(name, torch.tensor(orders))
