"""Features by torchvision's networks, against torchvision's own models as they are."""

import numpy as np
import pytest
import torch
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection.transform import resize_boxes

from lightning_xai.data.region_features import boxes_inside
from lightning_xai.data.torchvision_features import TorchvisionFeatures
from lightning_xai.data.torchvision_weights import read_state, weight_file

RESNET, DETECTOR = "resnet18", "fasterrcnn_mobilenet_v3_large_320_fpn"


def random_model(name, **arguments):
    torch.manual_seed(3)
    model = get_model(name, weights=None, **arguments)
    for module in model.modules():  # as if they had been trained
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def resnet():
    return random_model(RESNET)


@pytest.fixture(scope="module")
def detector():
    return random_model(DETECTOR, weights_backbone=None)


@pytest.fixture(scope="module")
def files(resnet, detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.save(resnet.state_dict(), folder / "resnet.pth")
    torch.save({"model": detector.state_dict(), "epoch": 7}, folder / "detector.pth")
    return folder


@pytest.fixture(scope="module")
def ours(files):
    return features(files)


def features(files, **arguments) -> TorchvisionFeatures:
    given = {"image_weights": files / "resnet.pth", "box_weights": files / "detector.pth", "device": "cpu"}
    return TorchvisionFeatures(**{**given, "image_network": RESNET, "box_network": DETECTOR, **arguments})


def picture(h=120, w=170, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, h, w), dtype=np.uint8))


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * np.abs(b).max())


def test_boxes_are_seen_as_the_detector_sees_its_own_proposals(ours, detector):
    seen = {}

    def keep_proposals(module, arguments):
        seen["proposals"], seen["size"] = arguments[1][0], arguments[2][0]

    def keep_features(module, arguments, result):
        seen["features"] = result

    detector.rpn._pre_nms_top_n["testing"] = 40
    hooks = [
        detector.roi_heads.register_forward_pre_hook(keep_proposals),
        detector.roi_heads.box_head.register_forward_hook(keep_features),
    ]
    pixels = picture()
    with torch.no_grad():
        detector([pixels.float() / 255])
    for hook in hooks:
        hook.remove()
    boxes = resize_boxes(seen["proposals"], seen["size"], pixels.shape[1:]).numpy()
    large = ((boxes[:, 2:] - boxes[:, :2]) > 2).all(1) & (boxes >= 0).all(1)
    assert large.sum() > 5
    found = ours.box_features(pixels, boxes[large])
    assert found.shape == (large.sum(), 1024) == (large.sum(), ours.box_size) and found.dtype == np.float32
    assert found.std(0).max() > 1e-3
    close(found, seen["features"].numpy()[large])


def test_the_whole_picture_is_averaged_uncropped(ours, resnet):
    pixels = picture(512, 640)  # halved exactly: an average of 2 x 2 pixels comes close to the anti-aliased resize
    by_hand = torch.nn.functional.interpolate(
        pixels[None].float() / 255, (256, 320), mode="bilinear", antialias=True, align_corners=False
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (by_hand - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        for name, module in resnet.named_children():
            if name in ("avgpool", "fc"):
                break
            x = module(x)
    assert x.shape == (1, 512, 8, 10)
    found = ours.image_features(pixels)
    assert found.shape == (512,) == (ours.image_size,)
    close(found, x.mean((2, 3))[0].numpy())


def test_features_do_not_depend_on_company(ours):
    boxes = np.array([[3, 4, 60, 70], [0, 0, 170, 120], [100.5, 20, 160, 90.25]], np.float32)
    image, together = ours.features(picture(), boxes)
    ours.features(picture(9, 640, seed=1), np.array([[0, 0, 5, 5]]))  # so flat that it is mostly padding
    for place in (2, 0, 1):
        again, alone = ours.features(picture(), boxes[place : place + 1])
        close(alone[0], together[place])
        assert np.array_equal(again, image)
    none = ours.features(picture(), np.zeros((0, 4)))[1]
    assert none.shape == (0, 1024)
    many = ours.box_features(picture(), boxes.repeat(300, 0))
    close(many[::300], together)


def test_a_flat_picture_keeps_the_strides(files):
    """A fresh one and one that saw a usual picture first agree on a picture that is mostly padding."""
    flat, box = picture(9, 640, seed=1), np.array([[100, 0, 300, 9]])
    fresh, used = features(files), features(files)
    used.box_features(picture(), np.array([[0, 0, 50, 50]]))
    close(fresh.box_features(flat, box), used.box_features(flat, box))


def test_parts_outside_do_not_count(ours):
    inside = ours.box_features(picture(), np.array([[100, 50, 170, 120]]))
    close(ours.box_features(picture(), np.array([[100, 50, 300, 130]])), inside)
    with pytest.raises(ValueError, match=r"box \(180, 3, 190, 9\) .* no area in the picture of 170 x 120 pixels"):
        ours.box_features(picture(), np.array([[0, 0, 5, 5], [180, 3, 190, 9]]))
    with pytest.raises(ValueError, match=r"box \(5, 5, 5, 9\)"):
        boxes_inside(np.array([[5, 5, 5, 9]]), (120, 170))


def test_pictures_of_another_kind(ours):
    with pytest.raises(ValueError, match=r"uint8 \(3, h, w\), but this one is torch.float32 \(3, 8, 8\)"):
        ours.image_features(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"torch.uint8 \(1, 8, 8\)"):
        ours.features(torch.zeros(1, 8, 8, dtype=torch.uint8), np.zeros((0, 4)))
    with pytest.raises(ValueError, match=r"700 x 1 pixels .* too long"):
        ours.box_features(torch.zeros(3, 1, 700, dtype=torch.uint8), np.array([[0, 0, 5, 1]]))
    assert ours.image_features(torch.zeros(3, 1, 700, dtype=torch.uint8)).shape == (512,)


def test_nothing_is_computed_without_weights(files):
    with pytest.raises(ValueError, match=r"no weights of resnet18: give image_weights a file .* or 'download'"):
        features(files, image_weights=None)
    with pytest.raises(ValueError, match=f"no weights of {DETECTOR}: give box_weights"):
        features(files, box_weights=None)
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file; give a file of weights of resnet18"):
        features(files, image_weights=files / "none.pth")
    with pytest.raises(ValueError, match="image_network 'resnet19' is not among torchvision's: resnet"):
        features(files, image_network="resnet19")
    with pytest.raises(ValueError, match="box_network 'ssd300_vgg16' is not among torchvision's: fasterrcnn"):
        features(files, box_network="ssd300_vgg16")
    with pytest.raises(ValueError, match="no device 'gpu'"):
        features(files, device="gpu")
    with pytest.raises(ValueError, match="short_side=8"):
        features(files, short_side=8)


def test_keys_that_do_not_fit_are_named(files, resnet, tmp_path):
    def weights(**changes):
        state = {name: value for name, value in {**resnet.state_dict(), **changes}.items() if value is not None}
        torch.save(state, tmp_path / "changed.pth")
        return features(files, image_weights=tmp_path / "changed.pth")

    pixels = picture(40, 40)
    usual = features(files).image_features(pixels)
    other = weights(**{"fc.weight": torch.zeros(3, 512), "fc.bias": None, "bn1.num_batches_tracked": None})
    assert np.array_equal(other.image_features(pixels), usual)  # what classes there are makes no difference
    half = {name: value.half() for name, value in resnet.state_dict().items() if value.is_floating_point()}
    assert weights(**half).image_features(pixels).dtype == np.float32
    with pytest.raises(ValueError, match=r"does not fit the network: 'bn1.bias' is missing; 'extra' is unexpected\.$"):
        weights(**{"bn1.bias": None, "extra": torch.zeros(1)}).load()
    with pytest.raises(ValueError, match=r"'conv1.weight' has shape \(4, 3, 7, 7\) instead of \(64, 3, 7, 7\)"):
        weights(**{"conv1.weight": torch.zeros(4, 3, 7, 7)}).load()
    with pytest.raises(ValueError, match=r"'backbone.* and \d+ more are missing\.$"):
        features(files, box_weights=files / "resnet.pth").load()
    with pytest.raises(FloatingPointError, match=r"changed\.pth give features that are not finite"):
        weights(**{"bn1.bias": torch.full((64,), torch.inf)}).image_features(pixels)


def test_files_that_hold_no_weights(tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pth cannot be read as a file of weights: it is not of torch\.save"):
        read_state(tmp_path / "text.pth")
    torch.save({"model": {"a": 1}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth holds no state dict .* but a dict of 'a'"):
        read_state(tmp_path / "other.pth")


def test_origins_name_what_features_depend_on(ours):
    assert ours.image_origin == {
        "network": RESNET,
        "weights": "resnet.pth",
        "sha256": ours.image_origin["sha256"],
        "short_side": 256,
        "channels": 512,
    }
    assert ours.box_origin["weights"] == "detector.pth" and ours.box_origin["sha256"] != ours.image_origin["sha256"]
    assert len(ours.box_origin["sha256"]) == 64


def test_downloads_happen_only_on_request(files, monkeypatch, tmp_path):
    enum, asked = get_model_weights(RESNET), []

    def offline(self, **arguments):
        asked.append(self)
        raise OSError("no route")

    monkeypatch.setattr(enum, "get_state_dict", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    wanted = features(files, image_weights="download")
    assert not asked
    with pytest.raises(ConnectionError, match=r"weights of resnet18 cannot be downloaded from https://.*no route"):
        wanted.load()
    assert asked == [enum.DEFAULT]
    kept = tmp_path / "checkpoints" / enum.DEFAULT.url.rsplit("/", 1)[1]
    kept.parent.mkdir()
    kept.write_bytes(b"before")
    assert weight_file(RESNET, "download") == kept and len(asked) == 1


def test_released_weights_without_epsilon(files, monkeypatch):
    """torchvision's first Faster R-CNN was trained with a batch norm that adds nothing to the variance."""
    from lightning_xai.data import torchvision_features

    usual = features(files)
    usual.load()
    monkeypatch.setattr(torchvision_features, "WITHOUT_EPS", (usual.box_origin["sha256"][:8],))
    released = features(files)
    assert {m.eps for m in released._detector.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.0}
    assert 0.0 not in {m.eps for m in usual._detector.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    url = get_model_weights("fasterrcnn_resnet50_fpn").COCO_V1.url
    assert url.endswith("-258fb6c6.pth")  # the number by which such a file is known
