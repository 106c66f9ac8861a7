"""A linear probe: how well a frozen encoder's features separate the classes."""

from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from lightning_xai.nets.vit import ViT
from lightning_xai.nets.vit_checkpoints import load_for_finetuning, load_vit_checkpoint
from lightning_xai.tasks.classification import ClassificationTask
from lightning_xai.tasks.lars import LARS

HEAD_STD = 0.01


class LinearProbe(ClassificationTask):
    """Train a batch norm and a linear layer on the features of a frozen vision transformer.

    The rate is blr * images / 256 for `LARS`; the published recipe has 16384 images an update, 90 epochs (50 for the
    larger networks), random crops and flips, and reads the class token (timm: global_pool='token'). Frozen layers stay
    in evaluation mode: only the norm's statistics and the linear layer move.

    checkpoint: with load="finetune" a file with the encoder, as for `ClassificationTask` (None: random weights); with
    load="continue" a file of a probe, the original repository's or ours, with its head.
    Source: He et al., CVPR 2022, arXiv 2111.06377, appendix A.1.
    """

    def __init__(
        self,
        net: ViT,
        class_names: list[str] | None = None,
        lr: float | None = None,
        blr: float = 0.1,
        min_lr: float = 0.0,
        warmup_epochs: float = 10.0,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        drop_leftover: bool = True,
        checkpoint: str | None = None,
        load: Literal["finetune", "continue"] = "finetune",
    ):
        rates = {"lr": lr, "blr": blr, "min_lr": min_lr, "warmup_epochs": warmup_epochs}
        super().__init__(
            net, class_names, **rates, weight_decay=weight_decay, drop_leftover=drop_leftover, smoothing=0.0, load=load
        )
        self.momentum = momentum
        if checkpoint is not None and load == "finetune":
            load_for_finetuning(net, checkpoint)
            self._untrained_head = True
        put_probe(net)
        if checkpoint is not None and load == "continue":
            self._trained_names = load_vit_checkpoint(net, checkpoint)

    def on_fit_start(self) -> None:
        self.net.eval()
        self.net.net.head.train()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return LARS(self.net.net.head.parameters(), lr=0.0, weight_decay=self.weight_decay, momentum=self.momentum)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        if self.trainer.world_size > 1:
            # each process has normed its own images: all evaluate the statistics that a checkpoint will hold
            for buffer in self.net.net.head.buffers():
                dist.broadcast(buffer, 0)


def put_probe(net: ViT) -> None:
    """Freeze a network and put batch norm and linear layer, weights N(0, 0.01^2), in the place of its classifier.

    Raises ValueError where it has not one linear classifier called `head`, as networks of timm have.
    """
    linear = getattr(net.net, "head", None)
    if not isinstance(linear, nn.Linear):
        raise ValueError(
            "a linear probe puts a batch norm before the one linear layer 'head' of a network of timm, but 'head' of "
            f"{type(net.net).__name__} is {type(linear).__name__}: build it with num_classes above 0, unprobed"
        )
    net.requires_grad_(False)
    linear.requires_grad_(True)
    nn.init.normal_(linear.weight, std=HEAD_STD)
    nn.init.zeros_(linear.bias)
    net.net.head = nn.Sequential(nn.BatchNorm1d(linear.in_features, affine=False, eps=1e-6), linear)
