"""Grad-CAM on attention against its formula."""

import pytest
import torch

from lightning_xai.explain.gradcam import AttentionGradCAM
from lightning_xai.explain.recording import record
from lightning_xai.explain.targets import class_targets, detection_targets


def test_row_of_the_class_token(classifier, image_tokens):
    classes = torch.tensor([[2, 0], [0, 1], [4, 3]])
    with record(classifier, gradients=True) as recording:
        targets = class_targets(classifier(image_tokens), classes)
    got = AttentionGradCAM(mean_over="row")(recording, targets)["image"]
    logits = classifier.by("kept")(image_tokens)
    A = classifier.layers[-1].kept
    for target in range(6):
        sample = target // 2
        (G,) = torch.autograd.grad(logits[sample, classes.flatten()[target]], A, retain_graph=True)
        weights = G[sample, :, 0, 1:].mean(-1)
        expected = (weights[:, None] * A[sample, :, 0, 1:]).mean(0).clamp(min=0)
        torch.testing.assert_close(got[target, 1:], expected.detach())
    assert (got[:, 1:] > 0).any()


@pytest.mark.parametrize("padded", [False, True])
def test_mean_over_all_entries(encoder_decoder, map_tokens, padded):
    queries, classes = torch.tensor([4, 1, 0]), torch.tensor([0, 3, 3])
    tokens, padding = map_tokens, None
    if padded:
        tokens, padding = torch.cat([map_tokens, map_tokens], 1), torch.arange(16).expand(3, -1) >= 8
    with record(encoder_decoder, gradients=True) as recording:
        logits = encoder_decoder(tokens, padding)["pred_logits"]
        targets = detection_targets(logits, torch.arange(3), queries, classes)
    got = AttentionGradCAM()(recording, targets)["image"][:, :8]
    logits = encoder_decoder.by("kept")(map_tokens)["pred_logits"]
    A = encoder_decoder.cross_attn[-1].kept
    (G,) = torch.autograd.grad(logits[torch.arange(3), queries, classes].sum(), A)
    weights = G.mean((2, 3))
    expected = (weights[..., None] * A[torch.arange(3), :, queries]).mean(1).clamp(min=0)
    torch.testing.assert_close(got, expected.detach())


def test_wrong_options():
    with pytest.raises(ValueError, match="mean_over is 'patches', expected 'all' or 'row'"):
        AttentionGradCAM(mean_over="patches")
    with pytest.raises(ValueError, match="layer is 'mean', expected a number"):
        AttentionGradCAM("mean")
