"""Fine-tuning and evaluating an image classifier as masked autoencoders are fine-tuned."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_xai.explain.explainable import Choice, Explained, Prediction
from lightning_xai.explain.targets import class_targets
from lightning_xai.nets.vit_checkpoints import load_for_finetuning, load_vit_checkpoint
from lightning_xai.nets.weight_files import some_of
from lightning_xai.tasks.classification_scores import ClassificationScores
from lightning_xai.tasks.layer_decay import layer_decay_groups
from lightning_xai.tasks.mae_recipe import IMAGENET_MEAN, IMAGENET_STD, MAERecipe
from lightning_xai.tasks.mixing import Mixing

OFFERED = ("predicted", "truth", "class")  # what can be explained


class ClassificationTask(MAERecipe):
    """Fine-tune a vision transformer on classes, and measure top-1 and top-5 accuracy.

    net: see `nets.vit.ViT`; images (B, 3, h, w) -> outputs with logits and features. class_names: index = label; by
    default the data module's. Rates, accumulation, left-over batches, normalisation: see `MAERecipe`; AdamW with betas
    (0.9, 0.999), weight decay and one rate a layer by `layer_decay_groups`. mixup, cutmix: strengths (0 = off), the
    other mixing options as in timm, see `Mixing`. smoothing: of the labels, mixed or not. Where the batch has `erased`,
    bool (B, h, w), those pixels become noise N(0, 1) after normalising (random erasing). In evaluation nothing is mixed
    or smoothed.

    Weights to start from are a `checkpoint` file of this project, MAE's repository or timm. load="finetune" takes all
    but the head, which is made anew (MAE's way: from pre-training to classes); load="continue" takes the trained head
    too, for more training on the same classes. To go on with an interrupted run is neither: that is the trainer's
    `ckpt_path`. A trained head that comes with other class names than the data's is refused with a ValueError.

    After validation or test `last_scores` holds acc1, acc5 and loss, and `last_samples` of each sample its index,
    label, prediction and whether that is correct, the same on every process.
    """

    def __init__(
        self,
        net: nn.Module,
        class_names: list[str] | None = None,
        lr: float | None = None,
        blr: float = 1e-3,
        min_lr: float = 1e-6,
        warmup_epochs: float = 5.0,
        layer_decay: float = 0.75,
        weight_decay: float = 0.05,
        drop_leftover: bool = True,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        cutmix_minmax: tuple[float, float] | None = None,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
        mixup_mode: Literal["batch", "pair", "elem"] = "batch",
        smoothing: float = 0.1,
        checkpoint: str | None = None,
        load: Literal["finetune", "continue"] = "finetune",
        pixel_mean: tuple[float, float, float] = IMAGENET_MEAN,
        pixel_std: tuple[float, float, float] = IMAGENET_STD,
    ):
        super().__init__(lr, blr, min_lr, warmup_epochs, drop_leftover, pixel_mean, pixel_std)
        if load not in ("finetune", "continue"):
            raise ValueError(
                f"load={load!r} is unknown: 'finetune' makes a new head, 'continue' keeps the trained one; an "
                "interrupted run goes on with the trainer's ckpt_path"
            )
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing={smoothing} must be a share of the label, from 0 up to but not including 1")
        self.net = net
        self.class_names = class_names
        self.layer_decay, self.weight_decay, self.smoothing = layer_decay, weight_decay, smoothing
        self.mixing: Mixing | None = None
        if mixup > 0 or cutmix > 0 or cutmix_minmax is not None:
            self.mixing = Mixing(
                net.num_classes, mixup, cutmix, cutmix_minmax, mixup_prob, mixup_switch_prob, mixup_mode, smoothing
            )
        self.scores = ClassificationScores()
        self.last_scores: dict[str, float] | None = None
        self.last_samples: dict[str, Tensor] | None = None
        self._losses: dict[str, dict[str, float]] = {}
        self._untrained_head = checkpoint is not None and load == "finetune"
        self._trained_names: list[str] | None = None
        if checkpoint is not None and load == "finetune":
            load_for_finetuning(net, checkpoint)
        elif checkpoint is not None:
            self._trained_names = load_vit_checkpoint(net, checkpoint)

    def setup(self, stage: str) -> None:
        names = getattr(self.trainer.datamodule, "class_names", None)
        if self.class_names is None:
            self.class_names = names
        classes = self.net.num_classes if names is None else len(names)
        if classes != self.net.num_classes:
            raise ValueError(
                f"the data has {classes} classes, but the network {self.net.num_classes}: build it with "
                f"num_classes={classes}, or give the data's class_names where its folders hold only some of the classes"
            )
        self._check_names(self._trained_names)
        if stage != "fit" and self._untrained_head:
            raise ValueError(
                "load='finetune' made a new head, which nothing has trained yet: to evaluate, give the checkpoint "
                "of a trained classifier with load='continue', or none beside a ckpt_path of this project's runs"
            )

    def _check_names(self, trained: list[str] | None) -> None:
        """Take the class names that a trained head came with, or raise ValueError where labels mean something else."""
        if self.class_names is None:  # pictures without classes come without names
            self.class_names = trained
        if trained is None or list(trained) == list(self.class_names):
            return
        if len(trained) != len(self.class_names):
            differing = f"the trained head has {len(trained)} classes, but here are {len(self.class_names)}"
        else:
            pairs = enumerate(zip(trained, self.class_names, strict=True))
            differing = next(f"label {i} was '{a}' in training, but is '{b}' here" for i, (a, b) in pairs if a != b)
        raise ValueError(
            f"{differing}: use the classes of the training ({some_of(trained)}) by giving them to the data as "
            "class_names, or to the model where only the names differ; for other classes load='finetune' makes a new "
            "head"
        )

    def on_train_start(self) -> None:
        super().on_train_start()
        self._untrained_head = False
        loader = self.trainer.train_dataloader
        if self.mixing is not None and getattr(loader, "batch_size", None):
            last = 0 if loader.drop_last else len(loader.sampler) % loader.batch_size
            for size in (loader.batch_size, last):  # rather now than at the end of an epoch
                self.mixing.check(size)

    def forward(self, images: Tensor) -> dict[str, Any]:
        return self.net(images)

    def classify(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 3, h, w) with values in [0, 1]."""
        return self(images.mul(255).sub_(self.pixel_mean).div_(self.pixel_std))["logits"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = layer_decay_groups(self.net, self.net.blocks(), self.layer_decay, self.weight_decay)
        for group in groups:
            del group["names"]
        # under float16's gradient scaler the fused update would unscale the gradients itself, after they were clipped
        return torch.optim.AdamW(groups, lr=0.0, fused=self.trainer.precision != "16-mixed")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        (images,), labels = self.prepare(batch), batch["labels"]
        if "erased" in batch:
            images = torch.where(batch["erased"][:, None], torch.randn_like(images), images)
        if self.mixing is not None:
            images, labels = self.mixing(images, labels)
        logits = self(images)["logits"].float()
        smoothing = self.smoothing if self.mixing is None else 0.0  # mixed labels are smooth already
        return self.finite(F.cross_entropy(logits, labels, label_smoothing=smoothing), batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        self.scores.reset()

    def on_test_epoch_start(self) -> None:
        self.scores.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self(*self.prepare(batch))["logits"].float()
        losses = F.cross_entropy(logits, batch["labels"], reduction="none")
        self.scores.update(logits, batch["labels"], batch["index"], losses)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._end_evaluation("test")

    def _end_evaluation(self, stage: str) -> None:
        numbers, samples = self.scores.compute()
        self.scores.reset()
        if not self.trainer.sanity_checking:
            self.last_scores, self.last_samples = numbers, samples
        self._losses[stage] = {"loss": numbers["loss"]}
        # all processes hold the same numbers; their maximum is exactly that number, their mean may be rounded
        options = {"sync_dist": True, "reduce_fx": "max"}
        self.log_dict({f"{stage}/{name}": value for name, value in numbers.items()}, **options)

    def epoch_losses(self, stage: str) -> dict[str, float]:
        return super().epoch_losses(stage) if stage == "train" else self._losses.get(stage, {})

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Of each image its `index`, `logits` (B, classes) and `features` (B, C), on the CPU."""
        outputs = self(*self.prepare(batch))
        found = {"index": batch["index"], "logits": outputs["logits"].float(), "features": outputs["features"].float()}
        return {name: values.cpu() for name, values in found.items()}

    def explained(
        self,
        outputs: Mapping[str, Any],
        batch: Mapping[str, Any],
        choice: str = "predicted",
        limit: int | None = None,
    ) -> Explained:
        """The logit of one class of each image: the predicted one, the true one, or a named one ("class:NAME|INDEX").

        There is one target a sample, whatever `limit` above 0. Samples whose class nobody knows (label -1) have no true
        one.
        """
        logits = outputs["logits"]
        chosen = Choice.parse(choice, OFFERED, logits.shape[1], self.class_names)
        if limit is not None and limit < 1:
            raise LookupError(f"limit={limit} leaves no target to explain")
        if chosen.kind == "truth":
            classes = batch["labels"].to(logits.device, copy=True)  # a batch of inference_mode is no part of a graph
        elif chosen.kind == "class":
            classes = torch.full((len(logits),), chosen.class_index, device=logits.device)
        else:
            classes = logits.detach().argmax(1)
        known = (classes >= 0).nonzero().flatten().tolist()
        if not known:
            raise LookupError("no image of this batch has a known class, so there is no true one to explain")
        classes = classes.clamp(min=0)
        targets = class_targets(logits, classes, rows=self.net.readout(outputs))
        shares = logits.detach().float().softmax(1).gather(1, classes[:, None])[:, 0].tolist()
        names = tuple(f"class {self.name_of(c)} {p:.2f}" for c, p in zip(classes.tolist(), shares, strict=True))
        explained = Explained(targets, names, classes)
        return explained if len(known) == len(logits) else explained.only(known)

    def prediction(self, outputs: Mapping[str, Any], batch: Mapping[str, Any], sample: int) -> Prediction:
        """The five best classes of one image with their probabilities, and the true class where the batch knows it."""
        shares = outputs["logits"][sample].detach().float().softmax(0)
        best = shares.topk(min(5, len(shares)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        lines = [f"{self.name_of(index)} {share:.2f}" for index, share in pairs]
        if "labels" in batch and int(batch["labels"][sample]) >= 0:
            lines.append(f"true: {self.name_of(int(batch['labels'][sample]))}")
        return Prediction(tuple(lines))

    def name_of(self, index: int) -> str:
        """The name of a class, or its number where names are not known."""
        names = self.class_names or ()
        return names[index] if index < len(names) else str(index)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["class_names"] = self.class_names

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._untrained_head = False
        self._check_names(checkpoint.get("class_names"))
