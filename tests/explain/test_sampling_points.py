"""Sampling points in pixels."""

import pytest
import torch

from lightning_xai.explain.recording import DeformableRecord
from lightning_xai.explain.sampling_points import ImageFrame, cell_centre, cell_of, sampling_points
from lightning_xai.explain.streams import Site

SITE = Site("attn", "deformable", "query", "image", "decoder", 0)
SHAPES = torch.tensor([[4, 6], [2, 3]])


def test_padded_image_in_another_size_than_its_file():
    """A 400 × 300 file, resized to 200 × 150, in a batch of 240 × 160: the image's lower right corner is its own."""
    frame = ImageFrame(padded=(160, 240), size=(150, 200), original=(300, 400))
    corner = torch.tensor([200 / 240, 150 / 160])
    torch.testing.assert_close(frame.from_padded(corner), torch.tensor([400.0, 300.0]))
    torch.testing.assert_close(frame.from_image(torch.ones(2)), torch.tensor([400.0, 300.0]))
    torch.testing.assert_close(frame.to_padded(frame.from_padded(corner)), corner)
    assert frame.extent() == pytest.approx((480, 320))
    box = frame.boxes_from_image(torch.tensor([0.5, 0.5, 0.5, 1.0]))
    torch.testing.assert_close(box, torch.tensor([100.0, 0.0, 300.0, 300.0]))


def test_selection_and_order():
    """Weights that name their place: 100 head + 10 level + point, of the second image's third query."""
    heads, levels, points = (torch.arange(n) for n in (3, 2, 4))
    named = (100 * heads[:, None, None] + 10 * levels[:, None] + points).float()
    weights = torch.zeros(2, 5, 3, 2, 4)
    weights[1, 2] = named
    record = DeformableRecord(SITE, SHAPES, torch.stack([weights, -weights], -1), weights)
    frame = ImageFrame((10, 20), (10, 20), (10, 20))
    found = sampling_points(record, frame, query=2, image=1)
    assert found.weights.tolist() == [100 * h + 10 * k + p for h in range(3) for k in range(2) for p in range(4)]
    assert found.xy.tolist() == [[20 * w, -10 * w] for w in found.weights.tolist()]
    one = sampling_points(record, frame, 2, 1, head=2, level=1, point=3)
    assert one.weights.tolist() == [213]
    assert sampling_points(record, frame, 2, 1, level=1).weights.tolist()[:5] == [10, 11, 12, 13, 110]


def test_cells_and_their_centres():
    for token in range(30):
        x, y = cell_centre(SHAPES, token).tolist()
        assert cell_of(SHAPES, 0 if token < 24 else 1, (x, y)) == token
    assert cell_centre(SHAPES, 0).tolist() == pytest.approx([1 / 12, 1 / 8])
    assert cell_centre(SHAPES, 25).tolist() == pytest.approx([0.5, 0.25])


def test_errors():
    with pytest.raises(ValueError, match="no feature level 2; levels go from 0 to 1"):
        cell_of(SHAPES, 2, (0.5, 0.5))
    with pytest.raises(ValueError, match=r"position \(1.2, 0.5\) lies outside the image"):
        cell_of(SHAPES, 0, (1.2, 0.5))
    with pytest.raises(ValueError, match="token 30"):
        cell_centre(SHAPES, 30)
