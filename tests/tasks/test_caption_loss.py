"""The loss of captions, word by word."""

import pytest
import torch

from lightning_xai.tasks.caption_loss import caption_loss

CAPTIONS = torch.tensor([[0, 4, 2, 1], [0, 3, 1, 1]])
MASK = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0]])


def words(logits):
    """-log p of every word after the first."""
    return -logits.log_softmax(-1).gather(2, CAPTIONS[:, 1:, None])[..., 0]


def test_mean_over_words():
    logits = torch.randn(2, 3, 5)
    losses = words(logits)
    expected = (losses[0].sum() + losses[1, :2].sum()) / 5
    torch.testing.assert_close(caption_loss(logits, CAPTIONS, MASK), expected)
    each = torch.stack([losses[0].mean(), losses[1, :2].mean()])
    torch.testing.assert_close(caption_loss(logits, CAPTIONS, MASK, per_sample=True), each)
    torch.testing.assert_close(caption_loss(logits, CAPTIONS, MASK.bool()), expected)


def test_weights_do_not_count_in_the_number():
    logits = torch.randn(2, 3, 5)
    expected = (2 * words(logits)[0].sum() + 2 * words(logits)[1, :2].sum()) / 5
    torch.testing.assert_close(caption_loss(logits, CAPTIONS, 2 * MASK), expected)


@pytest.mark.parametrize("per_sample", [True, False])
def test_captions_without_words(per_sample):
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = caption_loss(logits, CAPTIONS, torch.zeros(2, 4), per_sample)
    assert not loss.any()
    loss.sum().backward()
    assert not logits.grad.any()
