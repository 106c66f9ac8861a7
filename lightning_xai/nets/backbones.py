"""Convolutional backbones for detectors: feature maps of several strides, read from torchvision or timm by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

TORCHVISION_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
TIMM_PREFIX = "timm:"


class Backbone(nn.Module):
    """Images (B, 3, h, w) to feature maps (B, channels[i], h / strides[i], w / strides[i]), finest first."""

    body: nn.Module
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def forward(self, images: Tensor) -> list[Tensor]:
        raise NotImplementedError


class TorchvisionResNet(Backbone):
    """A ResNet with frozen batch norm of which stages 2 to 4 train; `dilation` gives stage 4 the stride of stage 3."""

    def __init__(self, name: str, dilation: bool, num_maps: int, out_strides: Sequence[int] | None, weights: str | None):
        super().__init__()
        resnet = getattr(torchvision.models, name)(
            weights="IMAGENET1K_V1" if weights == "imagenet" else None,
            norm_layer=FrozenBatchNorm2d,
            replace_stride_with_dilation=[False, False, dilation],
        )
        stages = ("layer1", "layer2", "layer3", "layer4")
        strides = (4, 8, 16, 16 if dilation else 32)
        chosen = choose_maps(strides, num_maps, out_strides, name)
        self.stages = tuple(stages[i] for i in chosen)
        children = dict(resnet.named_children())
        used = list(children)[: list(children).index(self.stages[-1]) + 1]
        self.body = nn.ModuleDict({k: children[k] for k in used})
        self.strides = tuple(strides[i] for i in chosen)
        width = resnet.fc.in_features  # of stage 4; each stage doubles the channels
        self.channels = tuple(width >> (3 - i) for i in chosen)
        for parameter_name, parameter in self.body.named_parameters():
            parameter.requires_grad_(parameter_name.startswith(("layer2", "layer3", "layer4")))
        if weights not in (None, "imagenet"):
            load_backbone_weights(self.body, weights)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = images, []
        for name, module in self.body.items():
            x = module(x)
            if name in self.stages:
                maps.append(x)
        return maps


class TimmBackbone(Backbone):
    """Any timm network that offers `features_only`; `arguments` go to its constructor, all of its parameters train."""

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, object],
        num_maps: int,
        out_strides: Sequence[int] | None,
        weights: str | None,
    ):
        import timm

        super().__init__()
        if name not in timm.list_models():
            raise ValueError(f"backbone '{TIMM_PREFIX}{name}': timm has no model '{name}' (see timm.list_models()).")
        fixed = {"features_only": True, "pretrained": weights == "imagenet"}
        info = timm.create_model(name, features_only=True, **arguments).feature_info
        chosen = choose_maps(info.reduction(), num_maps, out_strides, name)
        self.body = timm.create_model(name, out_indices=[info.out_indices[i] for i in chosen], **fixed, **arguments)
        self.strides = tuple(self.body.feature_info.reduction())
        self.channels = tuple(self.body.feature_info.channels())
        if weights not in (None, "imagenet"):
            load_backbone_weights(self.body, weights)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.body(images.contiguous(memory_format=torch.channels_last))


def build_backbone(
    name: str,
    arguments: Mapping[str, object] | None = None,
    dilation: bool = False,
    num_maps: int = 3,
    out_strides: Sequence[int] | None = None,
    weights: str | None = None,
) -> Backbone:
    """The backbone called `name`: a torchvision ResNet ("resnet50") or "timm:" and a name of timm ("timm:resnet10t").

    arguments: keyword arguments of the timm network. dilation: DC5, ResNet only. num_maps: how many of the coarsest maps are
    given, unless out_strides names them. weights: a file of ImageNet weights, "imagenet" to download them, or None for
    random weights. Raises ValueError on an unknown name or stride, FileNotFoundError where the file is missing.
    """
    arguments = dict(arguments or {})
    if name.startswith(TIMM_PREFIX):
        if dilation:
            raise ValueError(f"dilation=True works with torchvision's ResNets, not with backbone '{name}'.")
        return TimmBackbone(name.removeprefix(TIMM_PREFIX), arguments, num_maps, out_strides, weights)
    if name not in TORCHVISION_RESNETS:
        known = ", ".join(TORCHVISION_RESNETS)
        raise ValueError(f"backbone '{name}' is unknown: give one of {known}, or '{TIMM_PREFIX}' and a name of timm.")
    if arguments:
        raise ValueError(f"backbone_args {sorted(arguments)} need a timm backbone ('{TIMM_PREFIX}...'), not '{name}'.")
    if dilation and name in ("resnet18", "resnet34"):
        raise ValueError(f"dilation=True needs bottleneck blocks (resnet50, resnet101 or resnet152), not '{name}'.")
    return TorchvisionResNet(name, dilation, num_maps, out_strides, weights)


def choose_maps(strides: Sequence[int], num_maps: int, wanted: Sequence[int] | None, name: str) -> list[int]:
    """Indices of the maps to use: the `num_maps` coarsest, or those of the `wanted` strides (deepest first if two agree)."""
    if wanted is None:
        return list(range(max(0, len(strides) - num_maps), len(strides)))
    chosen, free = [], list(enumerate(strides))
    for stride in sorted(wanted, reverse=True):
        while free and free[-1][1] != stride:
            free.pop()
        if not free:
            raise ValueError(f"out_strides {list(wanted)}: backbone '{name}' has maps of strides {list(strides)}.")
        chosen.insert(0, free.pop()[0])
    return chosen


def load_backbone_weights(body: nn.Module, path: str) -> None:
    """Load a classifier's state dict (its head is left out) into `body`; raises ValueError that names what does not fit."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"backbone_weights '{path}' is neither a file nor the word 'imagenet'.")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    weights = {k: v for k, v in weights.items() if not k.startswith(("fc.", "head.", "classifier."))}
    missing, unexpected = body.load_state_dict(weights, strict=False)
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"backbone_weights '{path}' do not fit: missing {missing[:5]}, unexpected {unexpected[:5]}.")
