"""DETR: published sizes, padding, what it reports, its declared sites, and an independent implementation."""

import math

import pytest
import torch
from torch import nn

from lightning_xai.explain.generic_relevance import GenericRelevance
from lightning_xai.explain.recording import record
from lightning_xai.explain.targets import detection_targets
from lightning_xai.nets.detr import DETR, SinePositionEncoding
from lightning_xai.nets.detr_checkpoints import load_checkpoint

SMALL = {
    "num_classes": 5,
    "backbone": "timm:resnet18",
    "backbone_args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 48, 64], "stem_width": 8},
    "hidden_dim": 32,
    "num_heads": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
    "dim_feedforward": 64,
    "num_queries": 7,
}


class Patches(nn.Module):
    """A backbone whose cells see their own 32 x 32 pixels only, so that padding cannot reach other cells."""

    channels = (16,)

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 16, 32, stride=32)

    def forward(self, images):
        return [self.body(images)]


def small_net(**changes) -> DETR:
    torch.manual_seed(0)
    return DETR(**SMALL | changes).eval()


def patch_net(**changes) -> DETR:
    net = small_net(**changes)
    net.backbone[0], net.input_proj = Patches(), nn.Conv2d(16, 32, 1)
    nn.init.normal_(net.query_embed.weight, std=3)
    return net.eval()


def batch(h: int = 96, w: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images; the second fills two thirds of the height and half of the width."""
    images = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, h, w, dtype=torch.bool)
    mask[1, h * 2 // 3 :] = True
    mask[1, :, w // 2 :] = True
    return images.masked_fill(mask[:, None], 0.0), mask


@pytest.mark.parametrize(
    ("variant", "trained", "tensors"),
    [
        ({}, 41_302_368, 458),
        ({"dilation": True}, 41_302_368, 458),
        ({"backbone": "resnet101"}, 60_242_272, 458 + 17 * 15),
    ],
)
def test_published_sizes(variant, trained, tensors):
    """41 and 60 million trained parameters (table 1), and as many tensors as the published files hold."""
    with torch.device("meta"):
        net = DETR(**variant)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trained
    assert len(net.state_dict()) == tensors


def test_dilation_doubles_the_resolution_of_the_map():
    net = DETR(num_classes=3, dilation=True, hidden_dim=16, num_encoder_layers=1, num_decoder_layers=1)
    outputs = net.eval()(torch.zeros(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool))
    assert outputs["spatial_shapes"].tolist() == [[4, 6]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 50}, "hidden_dim=50 must be a multiple of 4"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"num_queries": 0}, "num_queries=0"),
        ({"num_decoder_layers": 0}, "num_decoder_layers=0"),
        ({"position_embedding": "rotary"}, "'rotary'"),
        ({"backbone": "resnet9"}, "'resnet9' is unknown"),
    ],
)
def test_arguments_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        small_net(**changes)


@pytest.mark.parametrize("position", ["sine", "learned"])
def test_reports_and_trains_every_layer(position):
    net = small_net(position_embedding=position).train()
    outputs = net(*batch())
    layers = [outputs, *outputs["aux_outputs"]]
    assert [layer["pred_logits"].shape for layer in layers] == [(2, 7, 6)] * 3
    assert [layer["pred_boxes"].shape for layer in layers] == [(2, 7, 4)] * 3
    sum(layer["pred_logits"].sum() + layer["pred_boxes"].sum() for layer in layers).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None and p.requires_grad] == []


def test_without_aux_loss_only_the_last_layer_is_reported():
    with_aux, without = small_net()(*batch()), small_net(aux_loss=False)(*batch())
    assert len(with_aux["aux_outputs"]) == 2 and "aux_outputs" not in without
    assert torch.equal(with_aux["pred_logits"], without["pred_logits"])


def test_padding_and_neighbours_in_the_batch_change_nothing():
    net = patch_net()
    images, mask = batch()
    together = net(images, mask)
    alone = net(images[1:, :, :64, :64], torch.zeros(1, 64, 64, dtype=torch.bool))
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(together[name][1:], alone[name], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together["valid_ratios"][:, 0], torch.tensor([[1.0, 1.0], [1 / 2, 2 / 3]]))
    noisy = net(images + mask[:, None] * 5.0, mask)
    torch.testing.assert_close(noisy["pred_logits"], together["pred_logits"], atol=1e-5, rtol=1e-5)
    blind = net(images, torch.zeros_like(mask))
    assert (blind["pred_logits"][1] - together["pred_logits"][1]).abs().max() > 1e-2


def test_sine_position_encoding_counts_unmasked_cells_from_one():
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[:, :, 4] = True
    code = SinePositionEncoding(16)(mask)[0]
    for y, x in ((0, 0), (3, 2)):
        rows = [2 * math.pi * (y + 1) / 4 / 10000 ** (2 * (i // 2) / 8) for i in range(8)]
        columns = [2 * math.pi * (x + 1) / 4 / 10000 ** (2 * (i // 2) / 8) for i in range(8)]
        expected = [(math.cos if i % 2 else math.sin)(a) for angles in (rows, columns) for i, a in enumerate(angles)]
        torch.testing.assert_close(code[y, x], torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_sites_are_what_runs_and_streams_fit_the_outputs():
    net, ran = small_net(), []
    for name, module in net.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(lambda module, inputs, name=name: ran.append(name))
    outputs = net(*batch())
    sites = net.sites()
    assert [site.module for site in sites] == ran
    assert [(site.writes, site.reads) for site in sites] == [("image", "image")] * 2 + [
        ("query", "query"),
        ("query", "image"),
    ] * 3
    assert [(site.part, site.layer) for site in sites[2:4]] == [("decoder", 0)] * 2
    streams = net.streams(outputs)
    assert streams["image"].layout.shapes == ((3, 4),)
    assert streams["image"].layout.valid_ratios is outputs["valid_ratios"]
    assert streams["query"].layout.count == 7


def test_boxes_stay_exact_in_half_precision_and_in_double():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = small_net()(*batch())
    assert outputs["pred_boxes"].dtype == torch.float32
    images, mask = batch()
    assert small_net().double()(images.double(), mask)["pred_boxes"].dtype == torch.float64


def test_compiled_as_one_graph():
    net = small_net()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    expected, outputs = net(*batch()), compiled(*batch())
    torch.testing.assert_close(outputs["pred_logits"], expected["pred_logits"])
    assert torch.equal(outputs["spatial_shapes"], expected["spatial_shapes"])


@pytest.mark.parametrize("position", ["sine", "learned"])
@pytest.mark.parametrize("dilation", [False, True], ids=["c5", "dc5"])
def test_agrees_with_transformers(dilation, position, tmp_path):
    """The same weights in an independent implementation, two images of different sizes."""
    transformers = pytest.importorskip("transformers")
    config = transformers.DetrConfig(
        num_labels=6,
        num_queries=20,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        dilation=dilation,
        position_embedding_type=position,
    )
    peer = transformers.DetrForObjectDetection(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in peer.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(noise * spread + (parameter if parameter.dim() == 1 else 0))
        peer.model.query_position_embeddings.weight.mul_(30)
        for layer in peer.model.decoder.layers:
            layer.encoder_attn.q_proj.weight.mul_(3)
            layer.encoder_attn.v_proj.weight.mul_(3)
        peer.bbox_predictor.layers[-1].weight.mul_(4)
    peer.save_pretrained(tmp_path)

    net = DETR(
        num_classes=6,
        hidden_dim=64,
        num_heads=4,
        num_encoder_layers=2,
        num_decoder_layers=2,
        dim_feedforward=64,
        num_queries=20,
        dilation=dilation,
        position_embedding=position,
    ).eval()
    load_checkpoint(net, tmp_path)
    images, mask = batch()
    with torch.no_grad():
        ours, theirs = net(images, mask), peer(pixel_values=images, pixel_mask=(~mask).long())
    torch.testing.assert_close(ours["pred_logits"], theirs.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours["pred_boxes"], theirs.pred_boxes, atol=1e-5, rtol=1e-4)
    assert ours["pred_boxes"].std(1).mean() > 0.01  # the queries say different things


@pytest.mark.parametrize("zero_row", ["wipe", "identity"])
def test_relevance_of_a_padded_batch_is_that_of_each_image_alone(zero_row):
    """Padded cells are no zero rows of the rule, and what is explained of one image takes nothing from another."""
    net, (images, mask) = patch_net(), batch()
    queries, classes = torch.tensor([2, 5]), torch.tensor([1, 4])

    def maps(images, mask, samples):
        with record(net, gradients=True) as recording:
            logits = net(images, mask)["pred_logits"]
            targets = detection_targets(logits, samples, queries, classes)
        return GenericRelevance(zero_row=zero_row)(recording, targets)["image"]

    together = maps(images, mask, torch.tensor([1, 1])).reshape(2, 3, 4)
    alone = maps(images[1:, :, :64, :64], torch.zeros(1, 64, 64, dtype=torch.bool), torch.tensor([0, 0]))
    assert alone.abs().max() > 0
    torch.testing.assert_close(together[:, :2, :2].flatten(1), alone, rtol=1e-4, atol=1e-6)
    assert (together[:, 2].abs().max(), together[:, :, 2:].abs().max()) == (0, 0)
