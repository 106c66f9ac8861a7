"""Object queries from layer to layer."""

import pytest
import torch

from lightning_xai.explain.query_evolution import evolution_of
from lightning_xai.explain.sampling_points import ImageFrame

FRAME = ImageFrame((100, 200), (100, 200), (100, 200))


def outputs(layers=3, queries=2):
    """Query 0 moves right by 0.1 a layer, query 1 stays; each layer is surer."""
    found = []
    for layer in range(layers):
        boxes = torch.tensor([[[0.2 + 0.1 * layer, 0.5, 0.1, 0.1], [0.7, 0.3, 0.1, 0.1]]])
        logits = torch.tensor([[[float(layer), -5.0], [-5.0, float(layer)]]])
        found.append({"pred_logits": logits, "pred_boxes": boxes})
    references = [torch.tensor([[[0.1, 0.5], [0.7, 0.3]]])] * (layers + 1)
    return {**found[-1], "aux_outputs": found[:-1], "reference_points": references}


def test_positions_classes_and_arrows():
    evolution = evolution_of(outputs(), FRAME)
    torch.testing.assert_close(evolution.centres[:, 0], torch.tensor([[40.0, 50.0], [60.0, 50.0], [80.0, 50.0]]))
    assert evolution.labels.tolist() == [[0, 1]] * 3
    torch.testing.assert_close(evolution.scores[:, 0], torch.tensor([0.0, 1.0, 2.0]).sigmoid())
    expected = torch.tensor([[[20.0, 0.0], [0.0, 0.0]]] * 2)
    torch.testing.assert_close(evolution.arrows_between_layers(), expected, atol=1e-4, rtol=0)
    expected = torch.tensor([[60.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(evolution.arrows_from_reference(), expected, atol=1e-4, rtol=0)


def test_references_may_be_boxes():
    given = outputs()
    start = given["reference_points"][0]
    boxes = torch.cat([start, torch.full_like(start, 0.3)], -1)
    given["reference_points"] = [start, boxes, boxes, boxes]
    assert evolution_of(given, FRAME).references.shape == (4, 2, 2)


def test_without_auxiliary_outputs():
    given = outputs()
    del given["aux_outputs"]
    with pytest.raises(ValueError, match="build it with aux_loss=True"):
        evolution_of(given, FRAME)
