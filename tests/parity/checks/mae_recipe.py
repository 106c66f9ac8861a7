"""How masked autoencoders and their classifiers learn: parameter groups, rates, and whole optimiser steps."""

from collections.abc import Mapping

import pytorch_lightning as pl
import torch
from reference_arrays import tolerate, tolerate_stated
from torch import Tensor, nn
from torch.utils.data import DataLoader

from checks import check
from checks.mae_vit import build, build_with_weights
from lightning_xai.nets.vit import ViT
from lightning_xai.tasks.classification import ClassificationTask
from lightning_xai.tasks.layer_decay import layer_decay_groups, weight_decay_groups
from lightning_xai.tasks.mae_schedule import rate_at, scaled_rate


class Bare(nn.Module):
    """Parameters with the names and shapes of a manifest; fixed position embeddings are frozen."""

    def __init__(self, manifest: list):
        super().__init__()
        for name, shape in manifest:
            owner = self
            *path, last = name.split(".")
            for part in path:
                if part not in dict(owner.named_children()):
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            frozen = last in ("pos_embed", "decoder_pos_embed")
            owner.register_parameter(last, nn.Parameter(torch.zeros(shape), requires_grad=not frozen))


@check("sa3/mae_param_groups")
def param_groups(case):
    tolerate_stated(case)
    fine_tuning = "layer_decay" in case.config
    decay = case.config["weight_decay"]
    if fine_tuning:
        with torch.device("meta"):  # names and shapes are all that counts
            vit = build(case.config)
        groups = layer_decay_groups(vit, vit.blocks(), case.config["layer_decay"], decay)
    else:
        groups = weight_decay_groups(Bare(case.info["manifest"]), decay)
    of = {name.removeprefix("net."): group for group in groups for name in group["names"]}
    names = case.info["strings"]["param_names"]
    if sorted(of) != sorted(names):
        case.failures.append(f"parameters in groups differ: {sorted(set(of) ^ set(names))}")
        return
    # the reference's groups stand in the order in which its network registered their first parameters
    order = [name for name, _ in case.info["manifest"] if name in of] if fine_tuning else names
    order = list(dict.fromkeys(of[name]["name"] for name in order))
    by_name = {group["name"]: group for group in groups}
    found = {
        "param_group": torch.tensor([order.index(of[name]["name"]) for name in names]),
        "param_weight_decay": torch.tensor([of[name]["weight_decay"] for name in names]),
        "param_lr_scale": torch.tensor([of[name]["lr_scale"] for name in names]),
        "group_lr_scale": torch.tensor([by_name[name]["lr_scale"] for name in order]),
        "group_weight_decay": torch.tensor([by_name[name]["weight_decay"] for name in order]),
        "group_size": torch.tensor([len(by_name[name]["params"]) for name in order]),
    }
    for name in set(found) & set(case.outputs):
        case.compare(name, found[name])


@check("sa3/mae_lr_schedule")
def lr_schedule(case):
    tolerate(case, lambda name: (case.info["tolerance"]["abs"], case.info["tolerance"]["rel"]))
    config = case.config
    lr = scaled_rate(config["blr"], config["batch_size"] * config["accum_iter"] * config["world_size"])
    case.compare("absolute_lr", torch.tensor(lr))
    batches, accumulated = config["iters_per_epoch"], config["accum_iter"]
    epochs = list(dict.fromkeys(case.outputs["epoch"].tolist()))  # the reference shows some of them only
    calls = [(epoch, batch) for epoch in epochs for batch in range(0, batches, accumulated)]
    case.compare("epoch", torch.tensor([epoch for epoch, _ in calls]))
    case.compare("micro_batch", torch.tensor([batch for _, batch in calls]))
    rates = torch.tensor(
        [
            rate_at(epoch + batch / batches, lr, config["min_lr"], config["warmup_epochs"], config["epochs"])
            for epoch, batch in calls
        ],
        dtype=torch.float64,
    )
    case.compare("lr", rates)
    case.compare("group_lr", rates[:, None] * case.inputs["lr_scales"].double())


class GivenBatches(ClassificationTask):
    """The task on images that are normalised already and labels that are soft already; notes what every step does."""

    def __init__(self, net: ViT, **options):
        super().__init__(net, smoothing=0.0, **options)
        self.seen: dict[str, list[Tensor]] = {"loss": [], "grad_norm": [], "lr": []}

    def prepare(self, batch: Mapping[str, Tensor]) -> tuple[Tensor]:
        return (batch["images"],)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.seen["loss"].append(loss.detach())
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            last = max(self.optimizers().param_groups, key=lambda group: group["lr_scale"])
            self.seen["lr"].append(torch.tensor(last["lr"]))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.seen["grad_norm"].append(nn.utils.get_total_norm([p.grad for p in self.net.parameters()]))


class OneEpoch(pl.Callback):
    """Stop after the epoch that the run began with."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = True


@check("sa3/mae_train_steps")
def train_steps(case):
    tolerate_stated(case)
    config = case.config
    net = build_with_weights(case)
    task = GivenBatches(
        net,
        **{name: config[name] for name in ("lr", "min_lr", "warmup_epochs", "layer_decay", "weight_decay")},
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=config["epochs"],
        min_epochs=1,
        accumulate_grad_batches=config["accum_iter"],
        gradient_clip_val=config["clip_grad"],
        callbacks=[OneEpoch()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit_loop.epoch_progress.current.processed = config["epoch"]
    batches = [
        {"images": images, "labels": targets, "index": torch.arange(len(images))}
        for images, targets in zip(case.inputs["images"], case.inputs["targets"], strict=True)
    ]
    before = {name: parameter.detach().clone() for name, parameter in net.net.named_parameters()}
    trainer.fit(task, DataLoader(batches, batch_size=None))

    for name, values in task.seen.items():
        case.compare(name, torch.stack(values))
    after = dict(net.net.named_parameters())
    names = case.info["strings"]["param_names"]
    case.compare("param_delta_norm", torch.stack([shown(n, after[n] - before[n]).double().norm() for n in names]))
    case.compare("param_sum", torch.stack([shown(n, after[n]).double().sum() for n in names]))
    case.compare("head_weight", after["head.weight"])
    case.compare("cls_token", after["cls_token"])
    case.compare("block0_qv_bias", shown("blocks.0.attn.qkv.bias", after["blocks.0.attn.qkv.bias"]))


def shown(name: str, values: Tensor) -> Tensor:
    """Without the bias of keys, whose gradient is zero and which Adam moves by rounding noise."""
    if not name.endswith("attn.qkv.bias"):
        return values
    query, _, value = values.chunk(3)
    return torch.cat([query, value])
