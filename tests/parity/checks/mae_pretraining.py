"""The masked autoencoder: positions, masking, reconstruction, losses and gradients; and the probe on its features."""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from reference_arrays import tolerate, tolerate_stated

from checks import check
from lightning_xai.nets.mae import ARCHITECTURES, MaskedAutoencoder, sincos_position_embedding, unpatchify
from lightning_xai.nets.mae_checkpoints import load_mae_checkpoint
from lightning_xai.nets.vit import build_vit
from lightning_xai.tasks.lars import LARS
from lightning_xai.tasks.linear_probe import put_probe
from lightning_xai.tasks.mae_pretraining import masked_pixel_loss, pasted_images, pixel_targets


def build(case) -> MaskedAutoencoder:
    """The network of the case's checkpoint, read from a file in the original's layout."""
    config = dict(case.config)
    config.pop("mask_ratio")
    named = ARCHITECTURES[config.pop("model").split()[0]] if "model" in config else {}
    net = MaskedAutoencoder(**named, **config)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mae.pth"
        torch.save({"model": case.state_dict(), "epoch": 799, "args": argparse.Namespace(blr=1.5e-4)}, file)
        load_mae_checkpoint(net, file)
    return net


@check("sa3/mae_pretrain")
def mae_pretrain(case):
    tolerate_stated(case)
    net, images = build(case), case.inputs["image"]
    outputs = net(images, case.config["mask_ratio"], case.inputs["noise"])
    for name in ("mask", "ids_restore"):
        case.compare(name, outputs[name])

    named = dict(net.named_parameters())
    names = case.info["strings"]["param_names"]
    trained = [name for name, parameter in named.items() if parameter.requires_grad]
    if trained != names:
        case.failures.append(f"trained parameters are {trained}, expected {names}")
    for name, normalise in {"pix": False, "norm_pix": True}.items():
        targets = pixel_targets(images, net.patch_size, normalise)
        loss = masked_pixel_loss(outputs["pred"], targets, outputs["mask"])
        gradients = torch.autograd.grad(loss, [named[n] for n in names], retain_graph=True)
        case.compare(f"loss_{name}", loss)
        # a float32 sum over millions of squares loses four digits
        case.compare(f"param_grad_norm_{name}", torch.stack([gradient.double().norm() for gradient in gradients]))
        if normalise:
            case.compare("target_norm_patch0", targets[:, :2])

    pred, latent = outputs["pred"].detach(), outputs["latent"].detach()
    painted = unpatchify(pred, net.patch_size, net.grid)
    masked, pasted = pasted_images(images, painted, outputs["mask"], net.patch_size, net.grid)
    found = {
        "pred": pred,
        "latent": latent,
        "reconstruction": painted,
        "masked_image": masked,
        "pasted_image": pasted,
        "pred_every_7th_patch": pred[:, ::7],
        "pred_patch_mean": pred.mean(-1),
        "pred_patch_std": pred.std(-1),
        "latent_tokens": latent[:, :4],
        "latent_token_mean": latent.mean(1),
    }
    for name in set(found) & set(case.outputs):
        case.compare(name, found[name])


@check("sa3/mae_sincos")
def mae_sincos(case):
    tolerate(case, lambda name: (1e-6, 1e-6))
    for channels, side, cls_token in case.config["items [embed_dim, grid, cls]"]:
        name = f"sincos_{channels}_{side}_{'cls' if cls_token else 'nocls'}"
        case.compare(name, sincos_position_embedding(channels, (side, side), cls_token))


@check("sa3/mae_linprobe_lars")
def mae_linprobe_lars(case):
    tolerate_stated(case)
    config = case.config
    arguments = {"img_size": 16, "patch_size": 8, "depth": 1, "num_heads": 1}
    arguments |= {"embed_dim": config["in_features"], "num_classes": config["num_classes"]}
    net = build_vit("timm:vit_tiny_patch16_224", arguments)
    put_probe(net)
    head = net.net.head.train()
    head.load_state_dict(
        {key.removeprefix("head."): values for key, values in case.state_dict().items()}
        | {"0.num_batches_tracked": torch.tensor(0)}
    )
    options = {name: config[name] for name in ("lr", "weight_decay", "momentum", "trust_coefficient")}
    optimizer = LARS(head.parameters(), **options)
    losses = []
    for features, labels in zip(case.inputs["features"], case.inputs["labels"], strict=True):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(head(features), labels))
        losses[-1].backward()
        optimizer.step()
    case.compare("loss", torch.stack(losses))
    for name, values in (("weight", head[1].weight), ("bias", head[1].bias)):
        case.compare(name, values)
    for name in ("running_mean", "running_var"):
        case.compare(name, getattr(head[0], name))
    case.compare("eval_logits", head.eval()(case.inputs["features"][0]))
