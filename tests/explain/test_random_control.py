"""The controls look right and leave the random state alone."""

import pytest
import torch

from lightning_xai.explain.random_control import CentreControl, RandomControl
from lightning_xai.explain.recording import record
from lightning_xai.explain.streams import FeatureLevels, Site, Stream
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


def test_random_numbers_are_a_samples_own(encoder_decoder, map_tokens):
    """They differ from sample to sample and target to target, whatever the batch."""

    def numbers(tokens, samples):
        with torch.no_grad(), record(encoder_decoder) as recording:
            logits = encoder_decoder(tokens)["pred_logits"]
        return RandomControl()(recording, detection_targets(logits, samples, torch.zeros_like(samples)))["image"]

    one, same = torch.tensor([0]), torch.tensor([0, 0])
    alone = [numbers(map_tokens[i : i + 1], one)[0] for i in range(3)]
    together = numbers(map_tokens, torch.tensor([0, 1, 2]))
    assert torch.equal(torch.stack(alone), together)
    assert len({tuple(row) for row in together.tolist()}) == 3
    twice = numbers(map_tokens[:1], same)
    assert torch.equal(twice[0], alone[0]) and not torch.equal(*twice)


def test_random_numbers_do_not_depend_on_padding():
    """An image in a larger map has the same numbers in its cells; other levels have others."""

    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = torch.nn.MultiheadAttention(3, 1, batch_first=True)

        def forward(self, images, mask):
            self.shapes = (tuple(images.shape[2:]), (1, 2))
            tokens = torch.cat([images.flatten(2), images[..., 0, :2]], 2).transpose(1, 2)
            return self.attend(tokens, tokens, tokens)[0]

        def sites(self):
            return [Site("attend", "dense", "image", "image", "encoder", 0)]

        def streams(self, outputs):
            return {"image": Stream("image", FeatureLevels(self.shapes))}

    net, image = Detector(), torch.randn(1, 3, 2, 3)
    found = []
    for h, w in ((2, 3), (4, 7)):
        images, mask = torch.zeros(1, 3, h, w), torch.ones(1, h, w, dtype=torch.bool)
        images[..., :2, :3], mask[:, :2, :3] = image, False
        with torch.no_grad(), record(net) as recording:
            targets = class_targets(net(images, mask)[:, 0])
        numbers = RandomControl()(recording, targets)["image"][0]
        found.append((numbers[: h * w].reshape(h, w)[:2, :3], numbers[h * w :]))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    assert len(set(found[1][0].flatten().tolist() + found[1][1].tolist())) == 8


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
