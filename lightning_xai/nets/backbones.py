"""Convolutional backbones for detectors: feature maps of several strides, read from torchvision or timm by name."""

from collections.abc import Mapping, Sequence

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from lightning_xai.nets.weight_files import read_weight_file

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

    def __init__(
        self, name: str, dilation: bool, num_maps: int, out_strides: Sequence[int] | None, weights: str | None
    ):
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
    """A convolutional network of timm, built with `arguments`; all of its parameters train."""

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
        if not timm.is_model(name):
            raise ValueError(f"backbone '{TIMM_PREFIX}{name}': timm has no network '{name}' (see timm.list_models()).")
        try:
            info = timm.create_model(name, features_only=True, **arguments).feature_info
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"backbone '{TIMM_PREFIX}{name}' cannot be built with backbone_args {dict(arguments)}: {error}"
            ) from error
        chosen = choose_maps(info.reduction(), num_maps, out_strides, TIMM_PREFIX + name)
        self.body = timm.create_model(
            name,
            pretrained=weights == "imagenet",
            features_only=True,
            out_indices=[info.out_indices[i] for i in chosen],
            **arguments,
        )
        if (layout := getattr(self.body, "output_fmt", "NCHW")) != "NCHW":
            raise ValueError(f"backbone '{TIMM_PREFIX}{name}' gives maps in the layout {layout.value}: choose a CNN.")
        self.strides = tuple(self.body.feature_info.reduction())
        self.channels = tuple(self.body.feature_info.channels())
        if weights not in (None, "imagenet"):
            load_backbone_weights(self.body, weights)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.body(images.contiguous(memory_format=torch.channels_last))  # a quarter faster on CPUs


def build_backbone(
    name: str,
    arguments: Mapping[str, object] | None = None,
    dilation: bool = False,
    num_maps: int = 3,
    out_strides: Sequence[int] | None = None,
    weights: str | None = None,
) -> Backbone:
    """The backbone called `name`: a torchvision ResNet ("resnet50") or "timm:" and a name of timm ("timm:resnet10t").

    arguments: keyword arguments of the timm network. dilation: DC5, ResNet only. num_maps: how many of the coarsest
    maps are given, unless out_strides names them. weights: a file of ImageNet weights, "imagenet" to download them, or
    None for random ones. Raises ValueError on an unknown name or stride, FileNotFoundError where the file is missing.
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
    """Indices of the maps to use: the `num_maps` coarsest, or those of the `wanted` strides (the deepest of equals)."""
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
    """Load a classifier's state dict into `body`, which has no head and may lack its last stages.

    Raises FileNotFoundError or ValueError: no such file, unreadable, or weights missing in it, which are named.
    """
    weights = read_weight_file(path)
    children = [name for name, _ in body.named_children()]
    flat = {child.replace("_", ".") + ".": child + "." for child in children}  # timm's stages_0 is stages.0 in files
    for prefix, child in flat.items():
        weights = {child + k.removeprefix(prefix) if k.startswith(prefix) else k: v for k, v in weights.items()}
    weights = {k: v for k, v in weights.items() if k.split(".")[0] in children}
    missing, unexpected = body.load_state_dict(weights, strict=False)
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"backbone_weights '{path}' do not fit: missing {missing[:5]}, unexpected {unexpected[:5]}.")
