import os
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from lightning_xai.cli.classified_images import features_key
from lightning_xai.data.image_folder import ImageFolder


@pytest.fixture
def given(tmp_path):
    """The arguments of `features_key`: a small task, its trainer and two pictures."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    torch.manual_seed(0)
    task = nn.Module()
    task.net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    task.register_buffer("pixel_mean", torch.zeros(3), persistent=False)
    pictures = ImageFolder([tmp_path], ["a", "b"], lambda *sample: sample[:2])
    return {"task": task, "trainer": SimpleNamespace(precision="32"), "pictures": pictures, "described": "crop"}


def test_equal_things_have_one_key(given):
    assert features_key(**given) == features_key(**given)


@pytest.mark.parametrize(
    "change",
    [
        lambda given: given["task"].net[0].weight.data[0, 0].add_(1e-3),
        lambda given: given["task"].net[1].running_mean.add_(1),
        lambda given: given["task"].pixel_mean.add_(0.5),
        lambda given: given["task"].net.append(nn.ReLU()),
        lambda given: setattr(given["trainer"], "precision", "bf16-mixed"),
        lambda given: given.update(described="squash"),
        lambda given: os.utime(given["pictures"].path(1), (1, 1)),
        lambda given: given.update(
            pictures=ImageFolder([given["pictures"].folders[0] / "a"], ["a"], None, labelled=False)
        ),
    ],
    ids=["weight", "statistics", "normalisation", "network", "precision", "preparation", "file", "folder"],
)
def test_whatever_changes_the_features_changes_the_key(given, change):
    before = features_key(**given)
    change(given)
    assert features_key(**given) != before
