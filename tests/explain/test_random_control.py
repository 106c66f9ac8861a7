"""The controls look right and leave the random state alone."""

import pytest
import torch

from lightning_xai.explain.random_control import CentreControl, RandomControl
from lightning_xai.explain.recording import record
from lightning_xai.explain.streams import FeatureLevels, Stream
from lightning_xai.explain.targets import class_targets, detection_targets


@pytest.fixture
def recorded(encoder_decoder, map_tokens):
    with torch.no_grad(), record(encoder_decoder) as recording:
        logits = encoder_decoder(map_tokens)["pred_logits"]
    return recording, detection_targets(logits, torch.tensor([0, 2]), torch.tensor([1, 4]))


def test_random(recorded):
    state = torch.get_rng_state()
    first, again, other = (RandomControl(seed)(*recorded) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first["image"].shape == (2, 8) and first["query"].shape == (2, 5)
    assert torch.equal(first["image"], again["image"]) and not torch.equal(first["image"], other["image"])
    assert not torch.equal(*first["image"])


def test_centre_is_highest_in_the_middle(recorded):
    got = CentreControl()(*recorded)
    assert list(got) == ["image"]
    grid = got["image"][0].reshape(2, 4)
    torch.testing.assert_close(grid, grid.flip(0))
    torch.testing.assert_close(grid, grid.flip(1))
    torch.testing.assert_close(grid[0, 1].log(), torch.tensor(-(0.25**2 + 0.125**2) / (2 * 0.25**2)))
    assert grid[0, 1] > grid[0, 0]


def test_centre_of_a_padded_image(recorded, monkeypatch):
    """The second sample's image fills the left half of its padded map."""
    recording, targets = recorded
    ratios = torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]], [[0.5, 1.0]]])
    recording._streams = {"image": Stream("image", FeatureLevels(((2, 4),), ratios))}
    grid = CentreControl()(recording, targets)["image"][1].reshape(2, 4)
    torch.testing.assert_close(grid[:, 0], grid[:, 1])
    assert (grid[:, 1] > grid[:, 2]).all() and (grid[:, 2] > grid[:, 3]).all()


def test_class_token_has_no_place(classifier, image_tokens):
    with torch.no_grad(), record(classifier) as recording:
        targets = class_targets(classifier(image_tokens))
    got = CentreControl()(recording, targets)["image"]
    assert got.shape == (3, 9) and got[:, 0].abs().max() == 0 and got[:, 1:].min() > 0
