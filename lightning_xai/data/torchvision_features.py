"""Features of new pictures by torchvision's networks: a ResNet for the whole picture, a Faster R-CNN for boxes."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lightning_xai.data.region_features import RegionFeatures, boxes_inside, check_picture
from lightning_xai.data.torchvision_weights import DOWNLOAD, fill, sha256_of, weight_file

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_ASPECT = 4  # the long side that the ResNet sees is at most so many short sides
MAX_BOXES = 512  # that are pooled at once
# Released before torchvision's frozen batch norm added anything to the variance; its own loader sets that back, too.
WITHOUT_EPS = ("258fb6c6",)


class TorchvisionFeatures(RegionFeatures):
    """Feature of a picture: a ResNet's last feature map, averaged; of a box: what a Faster R-CNN's box head says of it.

    The ResNet sees the whole picture, its short side made `short_side` pixels (the long one at most 4 times that),
    uncropped. The detector resizes by its own rule (800 to 1333 pixels), pools each given box off its feature pyramid
    and hands it to its box head, as it does with its own proposals. Everything is in float32 without gradients; one
    picture's features do not depend on another's.

    Args:
        image_weights, box_weights: Files of torch.save with the networks' state dicts (classifiers and proposals of
            any kind may be in them or not), or "download" for torchvision's best.
        image_network: One of torchvision's ResNets. box_network: one of its `fasterrcnn_...`.
        short_side: Of the picture that the ResNet sees; 256 is usual before a crop, which there is none of here.
        device: Where to compute; "auto" is a GPU where there is one.

    Weights are read when they are first needed. Raises ValueError without weights and for an unknown network,
    FileNotFoundError for a file that is not there.
    """

    def __init__(
        self,
        image_weights: str | os.PathLike | None = None,
        box_weights: str | os.PathLike | None = None,
        image_network: str = "resnet101",
        box_network: str = "fasterrcnn_resnet50_fpn",
        short_side: int = 256,
        device: str = "auto",
    ):
        if short_side < 32:
            raise ValueError(f"short_side={short_side} must be at least 32 pixels, the stride of a ResNet.")
        self.image_network = _known(image_network, "image_network", ("resnet", "resnext", "wide_resnet"))
        self.box_network = _known(box_network, "box_network", ("fasterrcnn_",))
        self.image_weights = _given(image_weights, "image_weights", image_network)
        self.box_weights = _given(box_weights, "box_weights", box_network)
        self.short_side = short_side
        try:
            self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        except RuntimeError as error:
            raise ValueError(f"no device {device!r}: give auto, cpu, cuda or cuda:1.") from error
        if self.device.type == "cuda" and (self.device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"no device {device!r}: there are {torch.cuda.device_count()} GPUs; give auto or cpu.")
        resnet, detector = _unfilled(image_network), _unfilled(box_network)
        self.image_size: int = resnet.fc.in_features
        self.box_size: int = detector.roi_heads.box_predictor.cls_score.in_features

    @cached_property
    def image_file(self) -> Path:
        return weight_file(self.image_network, self.image_weights)

    @cached_property
    def box_file(self) -> Path:
        return weight_file(self.box_network, self.box_weights)

    @cached_property
    def image_origin(self) -> dict[str, str | int]:
        """What the features of pictures depend on: network, its file of weights and that file's hash, and sizes."""
        file = self.image_file
        origin = {"network": self.image_network, "weights": file.name, "sha256": sha256_of(file)}
        return {**origin, "short_side": self.short_side, "channels": self.image_size}

    @cached_property
    def box_origin(self) -> dict[str, str | int]:
        """What the features of boxes depend on, see `image_origin`."""
        file = self.box_file
        origin = {"network": self.box_network, "weights": file.name, "sha256": sha256_of(file)}
        return {**origin, "channels": self.box_size}

    @cached_property
    def _resnet(self) -> nn.Module:
        net = _unfilled(self.image_network)
        fill(net, self.image_file, lambda name: not name.startswith("fc."))
        net.fc = nn.Identity()
        return self._ready(net)

    @cached_property
    def _detector(self) -> nn.Module:
        net = _unfilled(self.box_network)
        fill(net, self.box_file, lambda name: name.startswith(("backbone.", "roi_heads.box_head.")))
        if self.box_origin["sha256"].startswith(WITHOUT_EPS):
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = 0.0
        net.rpn = net.roi_heads.box_predictor = None
        return self._ready(net)

    def _ready(self, net: nn.Module) -> nn.Module:
        # a third quicker on a CPU
        return net.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)

    def load(self) -> None:
        """Read both networks' weights now, so that what is wrong with them is said before anything is computed."""
        _ = self._resnet, self._detector

    def features(self, picture: Tensor, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = boxes_inside(boxes, tuple(picture.shape[1:]))
        return self.image_features(picture), self.box_features(picture, inside)

    @torch.inference_mode()
    def image_features(self, picture: Tensor) -> np.ndarray:
        """The picture's own feature (C_mp,), see `features`."""
        from torchvision.transforms.v2.functional import normalize, resize

        pixels = self._pixels(picture)
        small = resize(pixels, list(_shown_size(*pixels.shape[1:], self.short_side)), antialias=True)
        return _finite(self._resnet(normalize(small, MEAN, STD)[None])[0], self.image_file)

    @torch.inference_mode()
    def box_features(self, picture: Tensor, boxes: np.ndarray) -> np.ndarray:
        """Features (R, C) of boxes (R, 4), see `features`."""
        from torchvision.models.detection.transform import resize_boxes

        pixels = self._pixels(picture)
        h, w = pixels.shape[1:]
        inside = torch.from_numpy(boxes_inside(boxes, (h, w))).to(self.device)
        if not len(inside):
            return np.zeros((0, self.box_size), np.float32)
        heads, shown = self._detector.roi_heads, self._detector.transform
        if min(h, w) * shown.max_size < max(h, w):
            raise ValueError(f"a picture of {w} x {h} pixels (w x h) is too long for {self.box_network}; cut it.")
        images, _ = shown([pixels])
        maps = self._detector.backbone(images.tensors)
        scaled = resize_boxes(inside, [h, w], list(images.image_sizes[0]))
        # strides follow exactly from the padded size; from the picture's own a very flat one would leave wrong ones
        padded = [tuple(images.tensors.shape[-2:])]
        rows = [heads.box_head(heads.box_roi_pool(maps, [part], padded)) for part in scaled.split(MAX_BOXES)]
        return _finite(torch.cat(rows), self.box_file)

    def _pixels(self, picture: Tensor) -> Tensor:
        check_picture(picture)
        return picture.to(self.device).float() / 255


def _known(network: str, argument: str, families: tuple[str, ...]) -> str:
    from torchvision.models import list_models

    there = [name for name in list_models() if name.startswith(families)]
    if network not in there:
        raise ValueError(f"{argument} {network!r} is not among torchvision's: {', '.join(there)}.")
    return network


def _given(weights: str | os.PathLike | None, argument: str, network: str) -> str | Path:
    if weights is None:
        raise ValueError(
            f"no weights of {network}: give {argument} a file of torch.save with its state dict, or {DOWNLOAD!r} for "
            "torchvision's."
        )
    return DOWNLOAD if str(weights) == DOWNLOAD else weight_file(network, weights)


def _unfilled(network: str) -> nn.Module:
    """The network without memory for its weights."""
    from torchvision.models import get_model

    backbone = {"weights_backbone": None} if network.startswith("fasterrcnn_") else {}
    with torch.device("meta"):
        return get_model(network, weights=None, **backbone)


def _shown_size(h: int, w: int, short_side: int) -> tuple[int, int]:
    """(h, w) with this short side, the long one as far as MAX_ASPECT allows."""
    scale = min(short_side / min(h, w), MAX_ASPECT * short_side / max(h, w))
    return max(1, round(h * scale)), max(1, round(w * scale))


def _finite(values: Tensor, file: Path) -> np.ndarray:
    found = values.float().cpu().numpy()
    if not np.isfinite(found).all():
        raise FloatingPointError(f"the weights of {file} give features that are not finite numbers; they are damaged.")
    return found
