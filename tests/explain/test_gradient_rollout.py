"""Gradient rollout against its matrix form."""

import torch

from lightning_xai.explain.gradient_rollout import GradientRollout
from lightning_xai.explain.recording import record
from lightning_xai.explain.targets import class_targets


def test_matrix_form(classifier, image_tokens):
    classes = torch.tensor([2, 0, 4])
    with record(classifier, gradients=True) as recording:
        targets = class_targets(classifier(image_tokens), classes)
    got = GradientRollout()(recording, targets)["image"]
    logits = classifier.by("kept")(image_tokens)
    kept = [attention.kept for attention in classifier.layers]
    gradients = torch.autograd.grad(logits[torch.arange(3), classes].sum(), kept)
    product = torch.eye(9, dtype=torch.float64).expand(3, 9, 9)
    for A, G in zip(kept, gradients, strict=True):
        M = (A * G).clamp(min=0).mean(1).detach() + torch.eye(9)
        product = (M / M.sum(-1, keepdim=True)) @ product
    torch.testing.assert_close(got, product[:, 0])
    assert (got[:, 1:] > 0).any()
