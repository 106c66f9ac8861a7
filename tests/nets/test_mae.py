"""The masked autoencoder against known answers and timm's own transformer, and what explanations see of it."""

import math

import pytest
import timm
import torch

from lightning_xai.explain.explanation import explain
from lightning_xai.explain.generic_relevance import GenericRelevance
from lightning_xai.explain.recording import record
from lightning_xai.explain.targets import Targets
from lightning_xai.nets.mae import (
    ARCHITECTURES,
    MaskedAutoencoder,
    patchify,
    random_masking,
    sincos_position_embedding,
    unpatchify,
)

SMALL = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
SMALL |= {"decoder_embed_dim": 8, "decoder_depth": 2, "decoder_num_heads": 2}
PATCHES = 4 * 6


def small_mae(seed=0, **changes) -> MaskedAutoencoder:
    torch.manual_seed(seed)
    return MaskedAutoencoder(**{**SMALL, **changes}).eval()


def images(count=2, size=(16, 24)):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def noise(count=2, patches=PATCHES):
    return torch.rand(count, patches, generator=torch.Generator().manual_seed(2))


def test_a_patch_holds_its_pixels_by_row_column_channel():
    image = torch.arange(3 * 4 * 6.0).reshape(1, 3, 4, 6)
    patches = patchify(image, 2)
    assert patches.shape == (1, 6, 12)
    expected = [image[0, c, row, column] for row in (2, 3) for column in (2, 3) for c in range(3)]
    assert patches[0, 4].tolist() == expected  # second row of patches, second column
    assert torch.equal(unpatchify(patches, 2, (2, 3)), image)


def test_positions_are_sines_and_cosines_of_column_and_row():
    table = sincos_position_embedding(8, (2, 3), cls_token=True)
    assert table.shape == (7, 8)
    assert not table[0].any()
    row, column = 1, 2
    expected = [f(place * w) for place in (column, row) for f in (math.sin, math.cos) for w in (1.0, 10000.0**-0.5)]
    assert table[1 + row * 3 + column].tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="multiple of 4, not 6"):
        sincos_position_embedding(6, (2, 2))


def test_masking_keeps_the_smallest_noise():
    given = torch.tensor([[0.4, 0.1, 0.9, 0.3], [0.0, 0.7, 0.2, 0.5]])
    kept, restore, mask = random_masking(given, 0.5)
    assert kept.tolist() == [[1, 3], [0, 2]]
    assert mask.tolist() == [[True, False, True, False], [False, True, False, True]]
    assert restore.tolist() == [[2, 0, 3, 1], [0, 3, 1, 2]]


@pytest.mark.parametrize("ratio", [0.0, 0.99, 1.0])
def test_masking_that_keeps_or_hides_nothing(ratio):
    with pytest.raises(ValueError, match=f"mask_ratio={ratio} keeps"):
        random_masking(noise(), ratio)


def test_encoder_is_timms_vision_transformer():
    net = small_mae()
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        **{name: SMALL[name] for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")},
        num_classes=0,
    ).eval()
    encoder = {key: value for key, value in net.state_dict().items() if not key.startswith(("decoder", "mask_token"))}
    vit.load_state_dict(encoder)
    x = images()
    tokens = net.patch_embed(x) + net.pos_embed[:, 1:]
    torch.testing.assert_close(net.encode(tokens), vit.forward_features(x))


def test_order_of_the_kept_patches_does_not_matter():
    net, x, draws = small_mae(), images(), noise()
    kept = draws.argsort(1)[:, :6]
    same = torch.ones_like(draws).scatter(1, kept.sort(1).values, torch.linspace(0, 0.5, 6).expand(2, -1))
    first, second = net(x, noise=draws), net(x, noise=same)
    assert torch.equal(first["mask"], second["mask"])
    assert not torch.equal(first["latent"], second["latent"])
    torch.testing.assert_close(first["pred"], second["pred"])


def test_hidden_pixels_are_not_seen():
    net, x, draws = small_mae(), images(), noise()
    outputs = net(x, noise=draws)
    assert outputs["latent"].shape == (2, 1 + 6, 16)
    assert outputs["mask"].sum(1).tolist() == [18, 18]
    hidden = unpatchify(outputs["mask"][..., None].expand(-1, -1, 48), 4, net.grid)
    changed = x + 5 * hidden
    torch.testing.assert_close(net(changed, noise=draws)["pred"], outputs["pred"])
    assert (net(x + 5 * (1 - hidden), noise=draws)["pred"] - outputs["pred"]).abs().max() > 1e-3


def test_masks_are_drawn_anew_without_noise():
    net, x = small_mae(), images()
    torch.manual_seed(5)
    first, second = net(x)["mask"], net(x)["mask"]
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(net(x)["mask"], first)


def test_positions_stay_and_everything_else_learns():
    net = small_mae()
    outputs = net(images(), noise=noise())
    (outputs["pred"] * outputs["mask"][..., None]).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == name.endswith("pos_embed"), name


def test_published_networks_have_the_published_keys():
    with torch.device("meta"):
        net = MaskedAutoencoder(**ARCHITECTURES["mae_vit_huge_patch14"])
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert shapes["pos_embed"] == (1, 257, 1280)
    assert shapes["decoder_pos_embed"] == (1, 257, 512)
    assert shapes["blocks.31.attn.qkv.weight"] == (3 * 1280, 1280)
    assert shapes["decoder_blocks.7.mlp.fc1.bias"] == (2048,)
    assert shapes["decoder_pred.weight"] == (14 * 14 * 3, 512)
    assert shapes["patch_embed.proj.weight"] == (1280, 3, 14, 14)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"img_size": 18}, "img_size=18 is no multiple of patch_size=4"),
        ({"embed_dim": 18}, "embed_dim=18 must be a multiple of its 2 heads"),
        ({"decoder_embed_dim": 12, "decoder_num_heads": 8}, "decoder_embed_dim=12 must be a multiple of its 8 heads"),
    ],
)
def test_sizes_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_mae(**arguments)


def test_images_of_another_size():
    with pytest.raises(ValueError, match=r"images are \(16, 16\) pixels .* built for \(16, 24\)"):
        small_mae()(images(size=(16, 16)))


def test_recording_has_both_parts():
    net = small_mae()
    with record(net) as recording:
        net(images(), noise=noise())
    shapes = {site.module: tuple(recording[site.module].probabilities.shape) for site in recording.sites}
    assert shapes["blocks.1.attn"] == (2, 2, 7, 7)
    assert shapes["decoder_blocks.0.attn"] == (2, 2, 25, 25)


@pytest.mark.parametrize("stream, token", [("image", 1 + 7), ("visible", 0)])
def test_relevance_for_a_painted_patch_and_for_the_code(stream, token):
    """Of the decoder's tokens for a patch it paints, and of the visible patches for the encoder's class token."""
    net, draws = small_mae(), noise()
    tokens = torch.full((2,), token)

    def target(outputs):
        read = outputs["pred"][:, 7] if stream == "image" else outputs["latent"][:, 0]
        return Targets(read.square().sum(1), torch.arange(2), {stream: tokens})

    explanation = explain(net, {"images": images(), "noise": draws}, target, GenericRelevance())
    grid = explanation.grid(stream)
    assert grid.shape == (2, 4, 6)
    if stream == "image":
        assert (grid > 0).all()
    else:
        hidden = torch.ones(2, PATCHES).scatter(1, draws.argsort(1)[:, :6], 0).unflatten(1, (4, 6)) > 0
        assert (grid[hidden] == 0).all() and (grid[~hidden] > 0).all()
