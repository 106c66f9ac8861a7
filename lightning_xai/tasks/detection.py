"""Training and evaluating a detector: what one step does, with which optimiser, and what it tells the loggers."""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_xai.evaluate.detection_ap import DetectionAP
from lightning_xai.explain.explainable import Explained, Prediction
from lightning_xai.tasks import lr_schedule
from lightning_xai.tasks.detection_explained import explained_queries, predicted_boxes
from lightning_xai.tasks.detection_families import family_of
from lightning_xai.tasks.detection_postprocess import split_images
from lightning_xai.tasks.loss_means import LossMeans, not_finite
from lightning_xai.tasks.not_finite import stop_unless_finite
from lightning_xai.tasks.parameter_groups import make_optimizer, parameter_groups

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Applicable(Protocol):
    """Something that changes what a network does, for the length of a context."""

    def applied(self, net: nn.Module) -> AbstractContextManager[None]: ...


class DetectionTask(pl.LightningModule):
    """Train a set-prediction detector as DETR or Deformable DETR was trained, and measure COCO's AP.

    net: images (B, 3, H, W), mask (B, H, W) -> outputs with pred_logits and pred_boxes, see `DeformableDETR`.
    class_names: index = label; default the data module's. class_scores: "sigmoid" or "softmax", by default as the
    network says; it decides the losses, the detections and the layout of checkpoints, see `FAMILIES`. Costs and weights
    of losses are by default those of the family (focal_alpha belongs to sigmoid, no_object_weight to softmax); other
    defaults are Deformable DETR's recipe: AdamW with three groups (see `parameter_groups`), `schedule="step"` drops all
    rates to a tenth every `lr_drop` epochs. "cosine" and "onecycle" follow the optimiser's steps; `warmup` is the share
    of all steps they rise in (default 0 and 0.3). clip_max_norm clips the norm of all gradients together (0 = off) and
    is the one place for it. checkpoint: a file with weights to start from, of the original repository, of transformers
    or ours; drop_class_heads leaves its class heads out, for other classes. intervention: applied around every forward
    pass. ap_backend, ap_iou_thresholds: see `DetectionAP`. threshold: detections of a higher score are shown and
    explained. On resuming, learning rates and schedule are those given here, not the checkpoint's.

    After validation or test `last_ap` holds the 12 numbers.
    """

    def __init__(
        self,
        net: nn.Module,
        class_names: list[str] | None = None,
        lr: float = 2e-4,
        lr_backbone: float = 2e-5,
        lr_linear_proj_mult: float = 0.1,
        lr_backbone_names: tuple[str, ...] = ("backbone.0",),
        lr_linear_proj_names: tuple[str, ...] = ("reference_points", "sampling_offsets"),
        optimizer: Literal["adamw", "sgd"] = "adamw",
        weight_decay: float = 1e-4,
        schedule: Literal["step", "cosine", "onecycle"] = "step",
        lr_drop: int = 40,
        warmup: float | None = None,
        clip_max_norm: float = 0.1,
        class_scores: Literal["sigmoid", "softmax"] | None = None,
        cost_class: float | None = None,
        cost_bbox: float | None = None,
        cost_giou: float | None = None,
        loss_class: float | None = None,
        loss_bbox: float | None = None,
        loss_giou: float | None = None,
        focal_alpha: float | None = None,
        no_object_weight: float | None = None,
        checkpoint: str | None = None,
        drop_class_heads: bool = False,
        intervention: Applicable | None = None,
        ap_backend: Literal["pycocotools", "faster_coco_eval"] = "pycocotools",
        ap_iou_thresholds: list[float] | None = None,
        threshold: float = 0.5,
    ):
        super().__init__()
        if schedule not in ("step", "cosine", "onecycle"):
            raise ValueError(f"schedule={schedule!r} is unknown: it must be 'step', 'cosine' or 'onecycle'")
        if schedule == "step" and warmup is not None:
            raise ValueError(f"warmup={warmup} needs schedule='cosine' or 'onecycle': 'step' keeps one rate an epoch")
        if warmup is not None and not 0 <= warmup < 1:
            raise ValueError(f"warmup={warmup} must be a share of all steps, from 0 up to but not including 1")
        if lr_drop < 1:
            raise ValueError(f"lr_drop={lr_drop} must be a number of epochs, at least 1")
        self.net = net
        self.class_names = class_names
        self.optimizer, self.weight_decay, self.clip_max_norm = optimizer, weight_decay, clip_max_norm
        self.lr, self.schedule, self.lr_drop, self.warmup = lr, schedule, lr_drop, warmup
        self.group_options = {
            "lr": lr,
            "lr_backbone": lr_backbone,
            "lr_linear_proj_mult": lr_linear_proj_mult,
            "lr_backbone_names": tuple(lr_backbone_names),
            "lr_linear_proj_names": tuple(lr_linear_proj_names),
        }
        self.family = family_of(net, class_scores)
        self.criterion = self.family.make_criterion(
            {"cost_class": cost_class, "cost_bbox": cost_bbox, "cost_giou": cost_giou},
            {"loss_class": loss_class, "loss_bbox": loss_bbox, "loss_giou": loss_giou},
            {"focal_alpha": focal_alpha, "no_object_weight": no_object_weight},
        )
        self.threshold = threshold
        self.intervention = intervention
        self.ap = DetectionAP(ap_backend, ap_iou_thresholds)
        self.last_ap: dict[str, float] | None = None
        self._means = {"train": LossMeans(), "val": LossMeans(), "test": LossMeans()}
        self._last_logged_step = 0
        self._total_steps: int | None = None
        self._grad_norm: Tensor | None = None
        self.register_buffer("pixel_mean", 255 * torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", 255 * torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
        if checkpoint is not None:
            self.family.load(net, checkpoint, drop_class_heads)
        elif drop_class_heads:
            raise ValueError("drop_class_heads=True needs a checkpoint whose class heads are to be dropped")

    def setup(self, stage: str) -> None:
        # Lightning asks for attention because a data module could move batches too; ours leave it to the task
        warnings.filterwarnings("ignore", "You have overridden `transfer_batch_to_device` in `LightningModule`")
        if self.class_names is None:
            self.class_names = getattr(self.trainer.datamodule, "class_names", None)
        if self.trainer.gradient_clip_val not in (None, self.clip_max_norm):
            raise ValueError(
                f"gradients are clipped to the norm clip_max_norm={self.clip_max_norm}, but the trainer's "
                f"gradient_clip_val is {self.trainer.gradient_clip_val}: set the model's clip_max_norm only"
            )

    def transfer_batch_to_device(self, batch: dict, device: torch.device, dataloader_idx: int) -> dict:
        """Only pictures and masks travel: the targets' many small tensors stay on the CPU until they are one."""
        on_device = {name: batch[name].to(device, non_blocking=True) for name in ("images", "mask")}
        return {**batch, **on_device}

    def prepare(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The normalised images (B, 3, H, W), zero on padding, and the mask (B, H, W) of a batch of bytes."""
        images, mask = batch["images"], batch["mask"]
        if images.dtype != torch.uint8:
            raise TypeError(f"batch['images'] is {images.dtype}, but images are uint8 until they are on the device")
        normalised = images.to(self.pixel_mean.dtype).sub_(self.pixel_mean).div_(self.pixel_std)
        return normalised.masked_fill_(mask[:, None], 0.0), mask

    def forward(self, images: Tensor, mask: Tensor) -> dict:
        with self.intervention.applied(self.net) if self.intervention is not None else nullcontext():
            return self.net(images, mask)

    def detections(self, outputs: Mapping[str, Any], orig_sizes: Tensor) -> list[dict[str, Tensor]]:
        """Per image its N boxes (N, 4) xyxy in pixels of the original image, scores, labels, queries (N,).

        With sigmoid scores the 100 best pairs of query and class, with softmax each query with its best class.
        """
        return split_images(self.family.detections(outputs["pred_logits"], outputs["pred_boxes"], orig_sizes))

    def class_probabilities(self, outputs: Mapping[str, Any]) -> Tensor:
        """(B, Q, K): each query's score of each class."""
        return self.family.scores(outputs["pred_logits"])

    def explained(
        self, outputs: Mapping[str, Any], batch: Mapping[str, Any], choice: str = "predicted", limit: int | None = None
    ) -> Explained:
        """The logits of the queries that `choice` asks for, see `explained_queries`."""
        scores = self.class_probabilities(outputs)
        return explained_queries(outputs, scores, batch, choice, limit, self.threshold, self.class_names)

    def prediction(self, outputs: Mapping[str, Any], batch: Mapping[str, Any], sample: int) -> Prediction:
        """The detections of one sample above the threshold."""
        scores = self.class_probabilities(outputs)
        return predicted_boxes(outputs, scores, batch, sample, self.threshold, self.class_names)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        outputs = self(*self.prepare(batch))
        losses, problem = None, None
        try:
            losses = self.criterion(outputs, relative_targets(batch["targets"]))
            total = losses.total
        except FloatingPointError as error:  # told to the other processes before anyone stops
            problem, total = str(error), outputs["pred_logits"].new_full((), torch.nan)

        def what() -> str:
            return problem or f"not finite: {not_finite(losses) or 'their sum'}"

        ids = [int(target["image_id"]) for target in batch["targets"]]
        stop_unless_finite(self, total, ids, what, batch_idx)
        self._means["train"].add(losses)
        return total

    def on_train_start(self) -> None:
        self._last_logged_step = self.global_step
        if self.schedule != "step":
            total = self.trainer.estimated_stepping_batches
            if total == float("inf"):
                raise ValueError(f"schedule={self.schedule!r} needs an end: set the trainer's max_epochs or max_steps")
            self._total_steps = int(total)
        rates = [group["lr"] for group in parameter_groups(self.net, **self.group_options)]
        for config in self.trainer.lr_scheduler_configs:
            lr_schedule.use_new_rates(config.scheduler, rates)
        self._announce_batch_size()

    def _announce_batch_size(self) -> None:
        loader = self.trainer.train_dataloader
        sampler = getattr(loader, "batch_sampler", None)
        batch = getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None)
        if batch is None:
            return
        accumulated, processes = self.trainer.accumulate_grad_batches, self.trainer.world_size
        total = batch * accumulated * processes
        self.print(
            f"effective batch size {total} = {batch} images x {accumulated} accumulated x {processes} processes, "
            f"lr {self.lr:g}"
        )
        if self.family.published is None or self.schedule != "step" or self.optimizer != "adamw":
            return
        rate, size = self.family.published
        linear = rate * total / size
        if not 0.5 <= self.lr / linear <= 2:
            rank_zero_warn(
                f"lr={self.lr:g} with an effective batch size of {total}: the published recipe has lr={rate:g} "
                f"for {size}, that is about lr={linear:.1e} (and lr_backbone a tenth) for {total}; with a "
                "rate that is far too high AP stays near 0"
            )

    def on_train_epoch_start(self) -> None:
        self._means["train"].reset()

    def on_train_batch_end(self, outputs: Any, batch: dict, batch_idx: int) -> None:
        step = self.global_step
        if step == self._last_logged_step or step % (self.trainer.log_every_n_steps or step + 1):
            return
        self._last_logged_step = step
        means = self._means["train"].recent()
        self.log("loss", means["loss"], prog_bar=True, logger=False)
        metrics = {f"train/{name}": value for name, value in means.items() if not name.endswith("_unscaled")}
        if self._grad_norm is not None:
            metrics["train/grad_norm"] = self._grad_norm.item()
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)

    def epoch_losses(self, stage: Literal["train", "val", "test"]) -> dict[str, float]:
        """Means of this epoch's losses over steps and processes, keys as in the original's log; a collective call."""
        return self._means[stage].epoch()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_loss_means"] = self._means["train"].state()
        checkpoint["class_names"] = self.class_names

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # a run that goes on in mid-epoch goes on with that epoch's means; a new epoch begins anew
        self._means["train"].restore(checkpoint.get("train_loss_means"))
        if self.class_names is None:  # pictures without annotations come without names
            self.class_names = checkpoint.get("class_names")

    def configure_optimizers(self) -> dict:
        groups = parameter_groups(self.net, **self.group_options)
        fused = self.trainer.precision != "16-mixed"
        optimizer = make_optimizer(groups, self.optimizer, self.weight_decay, fused=fused)
        scheduler = lr_schedule.make_scheduler(optimizer, lambda count: self._rate_factor(count))
        interval = "epoch" if self.schedule == "step" else "step"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval, "name": "lr"}}

    def _rate_factor(self, count: int) -> float:
        """What the rates are multiplied by after `count` epochs ("step") or optimiser steps (the other schedules).

        How many steps there are is known in `on_train_start` only: asking the trainer earlier would make it load data
        before a resumed run knows where in the epoch it goes on.
        """
        if self.schedule == "step":
            return lr_schedule.step_factor(count, self.lr_drop)
        if self._total_steps is None:
            return 1.0
        default, factor = {
            "cosine": (0.0, lr_schedule.cosine_factor),
            "onecycle": (0.3, lr_schedule.one_cycle_factor),
        }[self.schedule]
        warmup_steps = round((default if self.warmup is None else self.warmup) * self._total_steps)
        return factor(count, total_steps=self._total_steps, warmup_steps=warmup_steps)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self._grad_norm = nn.utils.get_total_norm(gradients)
        # with float16's scaled gradients an infinite norm is usual: the scaler leaves such a step out
        if self.trainer.precision != "16-mixed" and not self._grad_norm.isfinite():
            raise FloatingPointError(
                f"the gradients are not finite in epoch {self.current_epoch}, step {self.global_step}, so the weights "
                "are left as they are. The checkpoints so far are good; a lower learning rate usually cures it"
            )
        if self.clip_max_norm > 0:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_max_norm, self._grad_norm)

    def on_validation_epoch_start(self) -> None:
        self._begin_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self._begin_evaluation("test")

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: dict, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._end_evaluation("test")

    def predict_step(self, batch: dict, batch_idx: int) -> list[dict[str, Any]]:
        """Per image its `image_id` and the detections, on the CPU."""
        detections = self._detect(self(*self.prepare(batch)), batch)
        return [
            {"image_id": int(target["image_id"]), **image}
            for target, image in zip(batch["targets"], detections, strict=True)
        ]

    def _detect(self, outputs: Mapping[str, Any], batch: dict) -> list[dict[str, Tensor]]:
        sizes = torch.stack([target["orig_size"] for target in batch["targets"]])
        found = self.family.detections(outputs["pred_logits"], outputs["pred_boxes"], sizes)
        return split_images({name: values.cpu() for name, values in found.items()})

    def _begin_evaluation(self, stage: str) -> None:
        self._means[stage].reset()
        self.ap.reset()

    def _evaluate(self, batch: dict, stage: str) -> None:
        targets = batch["targets"]
        outputs = self(*self.prepare(batch))
        # processes may have unequal numbers of batches here, so nothing in this step may wait for the others
        losses = self.criterion(outputs, relative_targets(targets), average_over_processes=False)
        self._means[stage].add(losses)
        ids = [int(target["image_id"]) for target in targets]
        self.ap.update(ids, self._detect(outputs, batch), [target["ground_truth"] for target in targets])

    def _end_evaluation(self, stage: str) -> None:
        numbers = self.ap.compute()
        self.ap.reset()
        losses = self.epoch_losses(stage)
        if not self.trainer.sanity_checking:
            self.last_ap = numbers
        metrics = {**numbers, **{name: value for name, value in losses.items() if not name.endswith("_unscaled")}}
        # all processes hold the same numbers; their maximum is exactly that number, their mean may be rounded
        options = {"sync_dist": True, "reduce_fx": "max"}
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.items()}, **options)


def relative_targets(targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Targets with boxes xyxy in pixels of the image as targets with boxes cxcywh in [0, 1]."""
    counts = [len(target["boxes"]) for target in targets]
    sizes = torch.stack([target["size"] for target in targets]).flip(1)  # (B, 2) as (w, h)
    sizes = sizes.repeat_interleave(torch.tensor(counts), 0)
    low, high = torch.cat([target["boxes"] for target in targets]).split(2, -1)
    boxes = torch.cat([(low + high) / 2 / sizes, (high - low) / sizes], -1).split(counts)
    return [{**target, "boxes": own} for target, own in zip(targets, boxes, strict=True)]
