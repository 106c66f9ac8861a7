"""Pictures of one image's attention, as `plot attention` writes them."""

import numpy as np
import pytest
import torch

from lightning_xai.callbacks import attention_views
from lightning_xai.callbacks.attention_views import QUERY_VIEWS, RecordedImage, Selection, plot_attention
from lightning_xai.explain.intervention import Intervention, extents
from lightning_xai.explain.recording import record
from lightning_xai.explain.sampling_points import ImageFrame

PICTURE = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)


@pytest.fixture
def image():
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[:, 48:], mask[:, :, 64:] = True, True
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).masked_fill(mask[:, None], 0), mask


def plot(net, image, folder, **options):
    written = plot_attention(net, *image, PICTURE, folder, ["", "circle", "square"], **options)
    assert all(file.stat().st_size > 1000 for file in written)
    return sorted(file.name for file in written)


@pytest.mark.parametrize("variant", [{}, {"with_box_refine": True}, {"with_box_refine": True, "two_stage": True}])
def test_decoder(detector, image, tmp_path, variant):
    net = detector(**variant).eval()
    names = plot(net, image, tmp_path, queries=[4], views=["layers", "heat"])
    assert names == ["decoder_queries.png", "decoder_query_4_heat.png", "decoder_query_4_layers.png"]


def test_encoder_position_and_all_views(detector, image, tmp_path):
    net = detector().eval()
    names = plot(net, image, tmp_path, selection=Selection("encoder"), position=(100, 20.4), position_level=1)
    assert names == sorted(f"encoder_level_1_x100_y20_{view}.png" for view in QUERY_VIEWS)
    names = plot(net, image, tmp_path, selection=Selection("encoder"), detections=2, views=["points"])
    assert 1 <= len(names) <= 2


def test_without_auxiliary_outputs_there_is_no_evolution(detector, image, tmp_path):
    assert plot(detector(aux_loss=False).eval(), image, tmp_path, detections=1, views=["points"])[0].endswith(
        "_points.png"
    )


def test_points_of_a_padded_image_lie_where_the_network_looked(detector, image):
    """Samples without offset are at the reference point, in pixels of the picture.

    On levels whose cells divide the image; elsewhere the network rounds the share of the map that the image fills.
    """
    net = detector().eval()
    for layer in net.transformer.decoder.layers:
        torch.nn.init.zeros_(layer.cross_attn.sampling_offsets.weight)
        torch.nn.init.zeros_(layer.cross_attn.sampling_offsets.bias)
    with torch.inference_mode(), record(net) as recording:
        outputs = net(*image)
    frame = ImageFrame((64, 96), (48, 64), (96, 128))
    shown = RecordedImage(PICTURE, recording, outputs, frame)
    chosen = Selection().check(extents(net))
    panel = shown._panel(3, chosen, 1, chosen.heads, levels=[0, 1])
    np.testing.assert_allclose(panel.xy, np.tile(panel.reference, (len(panel.xy), 1)), rtol=1e-4)
    assert len(panel.xy) == 2 * 2 * 2


def test_views_show_the_weights_under_the_given_forward(detector, image, tmp_path, monkeypatch):
    """A muted head has no weight in what is drawn."""
    net = detector().eval()

    def forward(images, mask):
        with Intervention("decoder", heads=[0]).applied(net):
            return net(images, mask)

    drawn = []

    def draw(picture, panels, **_):
        drawn.append(panels[0].weights.max())
        return picture

    monkeypatch.setattr(attention_views, "draw_sampling_points", draw)
    for run in (None, forward):
        plot(net, image, tmp_path, queries=[2], views=["points"], selection=Selection(heads=[0]), forward=run)
    assert drawn[0] > 0
    assert drawn[1] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": Selection(layers=[2])}, "layer 2 does not exist; the decoder has layers 0 to 1"),
        ({"selection": Selection(heads=[-1])}, "head -1 does not exist; the decoder has heads 0 to 1"),
        ({"selection": Selection(levels=[])}, "no levels are chosen; the decoder has levels 0 to 2"),
        ({"selection": Selection("neck")}, "no part 'neck'; choose from encoder, decoder"),
        ({"queries": [6]}, "no object query 6; queries go from 0 to 5"),
        ({"views": ["all"]}, "no view 'all'; choose from module, layers"),
        (
            {"selection": Selection("encoder"), "position": (128, 60)},
            "position 128 60 lies outside .* 128 pixels wide and 96 high",
        ),
        ({"selection": Selection("encoder"), "position": (3, 2), "position_level": 3}, "no feature level 3"),
    ],
)
def test_errors_say_what_exists(detector, image, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        plot(detector().eval(), image, tmp_path, **options)
