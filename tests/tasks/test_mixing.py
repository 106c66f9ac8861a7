"""Mixed images and labels: known mixtures, reproducible draws, and pairs."""

import numpy as np
import pytest
import torch

from lightning_xai.tasks.mixing import Mixing, numpy_seeded


def test_mixup_blends_images_and_labels_alike():
    mixing = Mixing(num_classes=2, mixup=0.8, cutmix=0.0, smoothing=0.0)
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    mixed, targets = mixing(images, torch.tensor([0, 1]))
    assert mixed[0].std() < 1e-6 and 0 < mixed[0, 0, 0, 0] < 1
    # image 0 shows class 1 as far as it is made of image 1
    assert torch.allclose(targets[0, 1], mixed[0, 0, 0, 0]) and torch.allclose(targets.sum(1), torch.ones(2))
    assert torch.allclose(mixed[0] + mixed[1], torch.ones(3, 8, 8))


def test_cutmix_counts_the_pixels():
    mixing = Mixing(num_classes=2, mixup=0.0, cutmix=1.0, smoothing=0.0)
    torch.manual_seed(3)
    mixed, targets = mixing(torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)]), torch.tensor([0, 1]))
    assert set(mixed.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(targets[0, 1], mixed[0].mean()) and 0 < mixed[0].mean() < 1


def test_smoothing():
    _, targets = Mixing(4, mixup=0.8, cutmix=0.0, prob=0.0, smoothing=0.2)(
        torch.zeros(2, 3, 4, 4), torch.tensor([1, 3])
    )
    assert torch.allclose(targets[0], torch.tensor([0.05, 0.85, 0.05, 0.05]))


def test_draws_follow_torchs_seed_and_leave_numpys_alone():
    def draw(seed):
        torch.manual_seed(seed)
        return Mixing(3)(torch.arange(2 * 3 * 16.0).view(2, 3, 4, 4), torch.tensor([0, 2]))[1]

    np.random.seed(1)
    expected = np.random.RandomState(1).rand()
    first, again, other = draw(5), draw(5), draw(6)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert np.random.rand() == expected


def test_numpy_is_restored_after_an_error():
    np.random.seed(2)
    with pytest.raises(ZeroDivisionError), numpy_seeded(7):
        raise ZeroDivisionError
    assert np.random.rand() == np.random.RandomState(2).rand()


def test_odd_batches_and_unknown_modes():
    with pytest.raises(ValueError, match="a batch of 3 images cannot be mixed in pairs: use an even batch_size"):
        Mixing(2)(torch.zeros(3, 3, 4, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="mixup_mode='half' is unknown: it must be 'batch', 'pair' or 'elem'"):
        Mixing(2, mode="half")
