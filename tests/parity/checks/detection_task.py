"""Losses, post-processing, optimiser groups, schedule and a few whole training steps."""

import pytorch_lightning as pl
import torch
from torch import Tensor

from checks import check
from checks.deformable_detr_net import ARGUMENTS, build, load, official
from lightning_xai.callbacks.kept_checkpoints import keeps_checkpoint
from lightning_xai.nets.deformable_detr import DeformableDETR
from lightning_xai.tasks import lr_schedule
from lightning_xai.tasks.detection import DetectionTask
from lightning_xai.tasks.detection_losses import SetCriterion
from lightning_xai.tasks.detection_postprocess import masks_in_images, top_detections
from lightning_xai.tasks.matching import HungarianMatcher, PackedTargets
from lightning_xai.tasks.parameter_groups import parameter_groups


@check("deformable_detr/criterion")
def criterion(case):
    given = {
        name: tensor.clone().requires_grad_()
        for name, tensor in case.inputs.items()
        if name.startswith(("pred_", "aux_", "enc_"))
    }
    outputs = {name: tensor for name, tensor in given.items() if name.startswith("pred_")}
    if "aux_logits" in given:
        layers = zip(given["aux_logits"], given["aux_boxes"], strict=True)
        outputs["aux_outputs"] = [{"pred_logits": logits, "pred_boxes": boxes} for logits, boxes in layers]
    if "enc_logits" in given:
        outputs["enc_outputs"] = {"pred_logits": given["enc_logits"], "pred_boxes": given["enc_boxes"]}
    targets = [
        {
            kind: case.inputs[f"target_{kind}_{image}"]
            for kind in ("boxes", "labels", "masks")
            if f"target_{kind}_{image}" in case.inputs
        }
        for image in range(len(given["pred_logits"]))
    ]
    weights = case.config["coefficients"]
    matcher = HungarianMatcher(weights["set_class"], weights["set_bbox"], weights["set_giou"])
    losses = SetCriterion(
        matcher,
        weights["cls"],
        weights["bbox"],
        weights["giou"],
        weights["mask"],
        weights["dice"],
        focal_alpha=weights["focal_alpha"],
    )(outputs, targets)

    stacks = {"last": outputs, "enc": outputs.get("enc_outputs")}
    stacks |= {f"aux{i}": layer for i, layer in enumerate(outputs.get("aux_outputs", []))}
    for name, layer in stacks.items():
        if layer is not None:
            compare_matches(case, matcher, name, layer, targets)
    for name, value in losses.as_dict().items():
        if f"loss.{name}" in case.outputs:
            case.compare(f"loss.{name}", value)
    for name, weight in zip(losses.names, losses.weights.tolist(), strict=True):
        expected = case.info["loss_weights"].get(name, 0.0)
        if abs(weight - expected) > 1e-6 * abs(expected):
            case.failures.append(f"weight {weight} of {name}, expected {expected}")
    case.compare("loss_total", losses.total)
    losses.total.backward()
    for name, tensor in given.items():
        case.compare(f"grad_{name}", tensor.grad)


def compare_matches(case, matcher: HungarianMatcher, name: str, layer: dict, targets: list[dict]) -> None:
    packed = PackedTargets.pack(targets, torch.device("cpu"), layer["pred_logits"].shape[-1])
    if name == "enc":
        packed = packed.with_labels(torch.zeros_like(packed.labels))
    matches = matcher(layer["pred_logits"][None], layer["pred_boxes"][None], packed)
    for image in range(len(targets)):
        for side, indices in zip(("query", "target"), matches.of(0, image), strict=True):
            case.compare(f"match_{name}_img{image}_{side}", indices)


@check("deformable_detr/postprocess")
def postprocess(case):
    given = case.inputs
    found = top_detections(given["pred_logits"], given["pred_boxes"], given["orig_size"], case.config["topk"])
    for name in ("scores", "labels", "boxes"):
        case.compare(name, found[name])
    if "pred_masks" in given:
        sizes = given["mask_sizes"], given["mask_orig_size"]
        for image, masks in enumerate(masks_in_images(given["pred_masks"], *sizes, case.config["mask_threshold"])):
            case.compare(f"masks_img{image}", masks)


@check("deformable_detr/param_groups")
def param_groups(case):
    flags, names = case.config["flags"], case.info["param_names"]
    net = build(case.config)
    groups = parameter_groups(net, **group_options(flags))
    group_of = {name: index for index, group in enumerate(groups) for name in group["names"]}
    ours = [name for name, _ in net.named_parameters()]
    if set(ours) != set(names):
        case.failures.append(f"parameters differ: {sorted(set(ours) ^ set(names))}")
    case.compare("group", torch.tensor([group_of.get(name, -1) for name in names]))
    case.compare("group_lr", torch.tensor([group["lr"] for group in groups]))
    case.compare("group_numel", torch.tensor([sum(p.numel() for p in group["params"]) for group in groups]))
    parameters = list(net.parameters())
    case.compare("trainable", torch.tensor(sum(p.numel() for p in parameters if p.requires_grad)))
    case.compare("total", torch.tensor(sum(p.numel() for p in parameters)))


def group_options(flags: dict) -> dict:
    names = ("lr", "lr_backbone", "lr_linear_proj_mult", "lr_backbone_names", "lr_linear_proj_names")
    return {name: flags[name] for name in names if name in flags}


@check("deformable_detr/lr_schedule")
def schedule(case):
    config = case.config
    epochs, drop = config["epochs"], config["lr_drop"]
    optimizer, scheduler = scheduled(config["lr"], drop)
    rates, states = [], []
    for _ in range(epochs):
        rates.append(rates_of(optimizer))
        optimizer.step()
        scheduler.step()
        states.append((optimizer.state_dict(), scheduler.state_dict()))
    case.compare("lr", torch.tensor(rates))
    for name, flags in config.items():
        if not (isinstance(flags, dict) and "from_checkpoint_of_epoch" in flags):
            continue
        optimizer, scheduler = scheduled(flags["lr"], flags["lr_drop"])
        for part, state in zip((optimizer, scheduler), states[flags["from_checkpoint_of_epoch"]], strict=True):
            part.load_state_dict(state)
        lr_schedule.use_new_rates(scheduler, flags["lr"])
        rates = []
        for _ in range(flags["from_checkpoint_of_epoch"] + 1, epochs):
            rates.append(rates_of(optimizer))
            optimizer.step()
            scheduler.step()
        case.compare(f"lr_{name.replace('resume', 'resumed')}", torch.tensor(rates))
    kept = [epoch for epoch in range(epochs) if keeps_checkpoint(epoch, drop)]
    case.compare("extra_checkpoint_epochs", torch.tensor(kept))


def scheduled(rates: list[float], lr_drop: int):
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates])
    return optimizer, lr_schedule.make_scheduler(optimizer, lambda epoch: lr_schedule.step_factor(epoch, lr_drop))


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


class GivenSteps(DetectionTask):
    """One batch an epoch, of images that are already normalised."""

    def __init__(self, batches: list[dict], **arguments):
        super().__init__(**arguments)
        self.batches = batches

    def train_dataloader(self):
        return torch.utils.data.DataLoader([self.batches[self.current_epoch]], batch_size=None, collate_fn=lambda x: x)

    def prepare(self, batch: dict) -> tuple[Tensor, Tensor]:
        return batch["images"], batch["mask"]


class Seen(pl.Callback):
    """Rates and the norm of the gradients before they are clipped, step by step."""

    def __init__(self):
        self.rates, self.norms = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(rates_of(optimizer))
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(torch.stack([gradient.double().norm() for gradient in gradients]).norm())


@check("deformable_detr/train_steps")
def train_steps(case):
    config, flags = case.config, case.config["flags"]
    arguments = {ours: flags[theirs] for theirs, ours in ARGUMENTS.items() if theirs in flags}
    net = DeformableDETR(
        num_classes=config["num_classes"],
        dropout=flags["dropout"],
        freeze_backbone=flags["lr_backbone"] <= 0,
        **({"backbone": config["backbone"]} | arguments),
    )
    load(net, official(case.state_dict(), config))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    task = GivenSteps(
        [batch_of_step(case, step) for step in range(config["steps"])],
        net=net,
        optimizer="sgd" if flags.get("sgd") else "adamw",
        weight_decay=flags["weight_decay"],
        lr_drop=flags["lr_drop"],
        clip_max_norm=flags["clip_max_norm"],
        cost_class=flags["set_cost_class"],
        cost_bbox=flags["set_cost_bbox"],
        cost_giou=flags["set_cost_giou"],
        loss_class=flags["cls_loss_coef"],
        loss_bbox=flags["bbox_loss_coef"],
        loss_giou=flags["giou_loss_coef"],
        focal_alpha=flags["focal_alpha"],
        **group_options(flags),
    )
    criterion, losses, seen = task.criterion, [], Seen()
    task.criterion = lambda *given: losses.append(criterion(*given)) or losses[-1]
    trainer = pl.Trainer(
        max_epochs=config["steps"],
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        callbacks=[seen],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task)

    for step, step_losses in enumerate(losses):
        for name, value in step_losses.as_dict().items():
            if f"step{step}_{name}" in case.outputs:
                case.compare(f"step{step}_{name}", value)
    case.compare("loss_total", torch.stack([step_losses.total for step_losses in losses]))
    case.compare("grad_norm", torch.stack(seen.norms))
    case.compare("lr", torch.tensor(seen.rates))
    after, names = dict(net.named_parameters()), case.info["param_names"]
    case.compare("param_norms_after", torch.stack([after[name].double().norm() for name in names]))
    case.compare("param_delta_norms", torch.stack([(after[name] - before[name]).double().norm() for name in names]))
    for name in case.outputs:
        if name.startswith("after."):
            key = name.removeprefix("after.").replace("encoder0.", "transformer.encoder.layers.0.self_attn.")
            case.compare(name, net.state_dict()[key])


def batch_of_step(case, step: int) -> dict:
    """The step's images zero-padded; boxes as corners in units of the image, in double so that nothing is rounded."""
    given = case.inputs
    images = [given[f"step{step}_image_{i}"] for i in range(sum(k.startswith(f"step{step}_image_") for k in given))]
    height, width = (max(image.shape[d] for image in images) for d in (1, 2))
    batch = torch.zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    targets = []
    for i, image in enumerate(images):
        batch[i, :, : image.shape[1], : image.shape[2]] = image
        mask[i, : image.shape[1], : image.shape[2]] = False
        centre, size = given[f"step{step}_target_boxes_{i}"].double().split(2, -1)
        targets.append(
            {
                "boxes": torch.cat([centre - size / 2, centre + size / 2], -1),
                "labels": given[f"step{step}_target_labels_{i}"],
                "size": torch.tensor([1, 1]),
                "image_id": torch.tensor(i),
            }
        )
    return {"images": batch, "mask": mask, "targets": targets}
