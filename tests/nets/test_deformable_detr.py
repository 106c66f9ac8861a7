"""The detector: sizes, initial values, what it reports, its declared sites, and an independent implementation."""

import math

import pytest
import torch
from ms_deform_attn import MSDeformAttn

from lightning_xai.nets.deformable_detr import (
    DeformableDETR,
    LearnedPositionEncoding,
    SinePositionEncoding,
    inverse_sigmoid,
    lay_out,
)
from lightning_xai.nets.deformable_detr_checkpoints import load_checkpoint

SMALL = {
    "num_classes": 5,
    "backbone": "timm:resnet18",
    "backbone_args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 48, 64], "stem_width": 8},
    "hidden_dim": 64,
    "num_heads": 4,
    "num_feature_levels": 3,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "dim_feedforward": 64,
    "num_queries": 7,
}
REFINE = {"with_box_refine": True}
TWO_STAGE = {"with_box_refine": True, "two_stage": True}


def small_net(**changes) -> DeformableDETR:
    torch.manual_seed(0)
    return DeformableDETR(**SMALL | changes).eval()


def batch(h: int = 64, w: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images; the second fills two thirds of the width and half of the height."""
    images = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, h, w, dtype=torch.bool)
    mask[1, h // 2 :] = True
    mask[1, :, w * 2 // 3 :] = True
    return images.masked_fill(mask[:, None], 0.0), mask


@pytest.mark.parametrize(
    ("variant", "trained", "total"),
    [
        ({}, 39_847_265, 40_069_665),
        (REFINE, 40_627_260, None),
        (TWO_STAGE, 40_959_129, None),
        ({"num_feature_levels": 1}, 33_844_193, None),
        ({"num_feature_levels": 1, "dilation": True}, 33_844_193, None),
    ],
)
def test_published_sizes(variant, trained, total):
    with torch.device("meta"):
        net = DeformableDETR(**variant)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trained
    if total:
        assert sum(p.numel() for p in net.parameters()) == total


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"two_stage": True}, "two_stage=True needs with_box_refine=True"),
        ({"hidden_dim": 100}, "hidden_dim=100 must be a multiple of 32"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"num_feature_levels": 0}, "num_feature_levels=0"),
        ({"num_queries": -1}, "num_queries=-1"),
        ({"position_embedding": "rotary"}, "'rotary'"),
        ({"out_strides": [4, 8, 16, 32]}, "more than num_feature_levels=3"),
    ],
)
def test_arguments_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        small_net(**changes)


@pytest.mark.parametrize("variant", [{}, REFINE, TWO_STAGE, {"position_embedding": "learned"}])
@pytest.mark.parametrize("levels", [1, 2, 3, 5])
def test_every_number_of_levels_runs_and_trains(variant, levels):
    net = small_net(num_feature_levels=levels, num_queries=2, **variant).train()
    outputs = net(*batch())
    assert outputs["pred_logits"].shape == (2, 2, 5)
    assert outputs["pred_boxes"].shape == (2, 2, 4)
    assert outputs["spatial_shapes"].shape == (levels, 2)
    reported = [outputs, *outputs["aux_outputs"], *([outputs["enc_outputs"]] if net.two_stage else [])]
    sum(o["pred_logits"].sum() + o["pred_boxes"].sum() for o in reported).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_extra_levels_come_from_the_last_map_then_from_each_other():
    net = small_net(num_feature_levels=5)
    assert [conv.in_channels for conv, _ in net.input_proj] == [32, 48, 64, 64, 64]
    assert [conv.kernel_size for conv, _ in net.input_proj] == [(1, 1)] * 3 + [(3, 3)] * 2
    outputs = net(*batch())
    assert outputs["spatial_shapes"].tolist() == [[8, 12], [4, 6], [2, 3], [1, 2], [1, 1]]


def test_initial_values():
    net = small_net()
    outputs = net(*batch())
    torch.testing.assert_close(outputs["pred_boxes"][..., 2:], torch.full((2, 7, 2), 1 / (1 + math.exp(2))))
    torch.testing.assert_close(outputs["pred_boxes"][..., :2], outputs["reference_points"][0])
    torch.testing.assert_close(net.class_embed[0].bias, torch.full((5,), -math.log(99)))
    assert (net.transformer.reference_points.bias == 0).all()
    linear = net.transformer.encoder.layers[0].linear1.weight
    bound = math.sqrt(6 / sum(linear.shape))
    assert 0.9 * bound < linear.abs().max() <= bound
    offsets = net.transformer.decoder.layers[1].cross_attn.sampling_offsets
    assert (offsets.weight == 0).all()
    torch.testing.assert_close(offsets.bias.view(4, 3, 4, 2)[0, :, :, 0], torch.arange(1.0, 5).expand(3, 4))

    refine, two_stage = small_net(**REFINE), small_net(**TWO_STAGE)
    assert [head.layers[-1].bias.tolist() for head in refine.bbox_embed] == [[0, 0, -2, -2], [0, 0, 0, 0]]
    assert [head.layers[-1].bias.tolist() for head in two_stage.bbox_embed] == [[0] * 4] * 3


def test_shared_tensors_have_the_names_of_the_original():
    base, refine, two_stage = small_net(), small_net(**REFINE), small_net(**TWO_STAGE)
    assert base.class_embed[0] is base.class_embed[1]
    assert "bbox_embed.1.layers.2.bias" in base.state_dict()
    assert refine.class_embed[0] is not refine.class_embed[1]
    assert refine.transformer.decoder.bbox_embed is refine.bbox_embed
    assert "transformer.decoder.bbox_embed.0.layers.0.weight" in dict(refine.named_parameters())
    assert two_stage.transformer.decoder.class_embed is two_stage.class_embed
    assert not any(key.startswith(("query_embed", "transformer.reference_points")) for key in two_stage.state_dict())


def test_references_are_fixed_points_or_the_boxes_before():
    outputs = small_net()(*batch())
    assert all(torch.equal(r, outputs["reference_points"][0]) for r in outputs["reference_points"])
    outputs = small_net(**REFINE)(*batch())
    first, second, last = outputs["reference_points"]
    assert first.shape[-1] == 2
    assert torch.equal(second, outputs["aux_outputs"][0]["pred_boxes"])
    assert torch.equal(last, outputs["pred_boxes"])
    assert not second.requires_grad


def test_without_aux_loss_only_the_last_layer_is_reported():
    with_aux, without = small_net(**REFINE)(*batch()), small_net(aux_loss=False, **REFINE)(*batch())
    assert len(with_aux["aux_outputs"]) == 1
    assert "aux_outputs" not in without
    assert torch.equal(with_aux["pred_logits"], without["pred_logits"])


def test_two_stage_starts_from_the_best_tokens():
    net = small_net(**TWO_STAGE)
    torch.nn.init.normal_(net.bbox_embed[-1].layers[-1].weight)
    outputs = net(*batch())
    proposals = outputs["enc_outputs"]
    best = proposals["pred_logits"][..., 0].topk(7, 1).indices
    for image in range(2):
        assert torch.equal(outputs["reference_points"][0][image], proposals["pred_boxes"][image, best[image]])
    padding = lay_out([batch()[1][:, ::s, ::s] for s in (8, 16, 32)]).padding
    assert (proposals["pred_boxes"][padding] == 1).all()
    assert not outputs["reference_points"][0].requires_grad
    with pytest.raises(ValueError, match=r"num_queries=500 .* give 126"):
        small_net(num_queries=500, **TWO_STAGE)(*batch())


def test_layout_of_a_padded_batch():
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[:, 3:] = True
    mask[:, :, 2:] = True
    pyramid = lay_out([mask, mask[:, ::2, ::2]])
    torch.testing.assert_close(pyramid.valid_ratios, torch.tensor([[[2 / 5, 3 / 4], [1 / 3, 1.0]]]))
    assert pyramid.shapes.tolist() == [[4, 5], [2, 3]]
    assert pyramid.sizes == [20, 6]
    assert pyramid.padding[0].sum() == 14 + 4
    torch.testing.assert_close(
        pyramid.centres[0, :2], torch.tensor([[0.25, 1 / 6], [0.75, 1 / 6]])
    )  # 2 x 3 valid cells
    torch.testing.assert_close(pyramid.centres[0, 20], torch.tensor([0.5, 0.25]))


def test_sine_position_encoding_counts_unmasked_cells():
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[:, :, 4] = True
    code = SinePositionEncoding(16)(mask)[0]
    for y, x in ((0, 0), (3, 2)):
        rows = [2 * math.pi * (y + 0.5) / 4 / 10000 ** (2 * (i // 2) / 8) for i in range(8)]
        columns = [2 * math.pi * (x + 0.5) / 4 / 10000 ** (2 * (i // 2) / 8) for i in range(8)]
        expected = [(math.cos if i % 2 else math.sin)(a) for angles in (rows, columns) for i, a in enumerate(angles)]
        torch.testing.assert_close(code[y, x], torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_learned_position_encoding():
    encoding = LearnedPositionEncoding(8)
    code = encoding(torch.zeros(2, 3, 50, dtype=torch.bool))
    assert torch.equal(code[1, 2, 49], torch.cat([encoding.col_embed.weight[49], encoding.row_embed.weight[2]]))
    with pytest.raises(ValueError, match="51 x 4"):
        encoding(torch.zeros(1, 51, 4, dtype=torch.bool))


def test_inverse_sigmoid():
    x = torch.linspace(0.01, 0.99, 9)
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)
    assert inverse_sigmoid(torch.tensor([0.0, 1.0])).abs().max() == pytest.approx(math.log(1e5), rel=1e-3)


def test_sites_are_what_runs_and_streams_fit_the_outputs():
    net = small_net()
    ran = []
    for name, module in net.named_modules():
        if isinstance(module, MSDeformAttn | torch.nn.MultiheadAttention):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    outputs = net(*batch())
    assert [site.module for site in net.sites()] == ran
    for site in net.sites():
        deformable = isinstance(net.get_submodule(site.module), MSDeformAttn)
        assert site.kind == ("deformable" if deformable else "dense")
        assert (site.writes, site.reads) == {
            "encoder": ("image", "image"),
            "decoder": ("query", "image" if deformable else "query"),
        }[site.part]
    streams = net.streams(outputs)
    assert streams["image"].layout.shapes == ((8, 12), (4, 6), (2, 3))
    assert streams["image"].layout.valid_ratios is outputs["valid_ratios"]
    assert streams["query"].layout.count == 7


@pytest.mark.parametrize("variant", [REFINE, TWO_STAGE])
def test_boxes_and_references_stay_exact_in_half_precision(variant):
    net, full = small_net(**variant), small_net(**variant)(*batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = net(*batch())
    assert outputs["pred_boxes"].dtype == torch.float32
    assert all(r.dtype == torch.float32 for r in outputs["reference_points"])
    torch.testing.assert_close(outputs["valid_ratios"], full["valid_ratios"])


def test_compiled_as_one_graph():
    net = small_net(**REFINE)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    expected, outputs = net(*batch()), compiled(*batch())
    torch.testing.assert_close(outputs["pred_boxes"], expected["pred_boxes"])
    assert torch.equal(outputs["spatial_shapes"], expected["spatial_shapes"])


@pytest.mark.parametrize(
    "variant",
    [{}, REFINE, TWO_STAGE, {"num_feature_levels": 1, "dilation": True}],
    ids=["base", "refine", "two", "dc5"],
)
def test_agrees_with_transformers(variant, tmp_path):
    """The same weights in an independent implementation, two images of different sizes."""
    transformers = pytest.importorskip("transformers")
    sizes = {"num_feature_levels": 4, "num_queries": 20} | variant
    config = transformers.DeformableDetrConfig(
        num_labels=91,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        two_stage_num_proposals=20,
        **sizes,
    )
    peer = transformers.DeformableDetrForObjectDetection(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in peer.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(noise * spread + (parameter if parameter.dim() == 1 else 0))
    peer.save_pretrained(tmp_path)

    net = DeformableDETR(num_encoder_layers=1, num_decoder_layers=2, dim_feedforward=64, **sizes).eval()
    load_checkpoint(net, tmp_path)
    images, mask = batch(128, 192)
    with torch.no_grad():
        ours, theirs = net(images, mask), peer(pixel_values=images, pixel_mask=~mask)
    torch.testing.assert_close(ours["pred_logits"], theirs.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours["pred_boxes"], theirs.pred_boxes, atol=1e-5, rtol=1e-4)
    assert ours["pred_boxes"].std(1).mean() > 0.01  # the queries say different things
