"""Vision transformers of timm and transformers, as they are: declarations, and that nothing about them changes."""

from functools import partial

import pytest
import timm
import torch
from torch import nn

from lightning_xai.explain.attn_lrp import AttnLRP
from lightning_xai.explain.explanation import explain
from lightning_xai.explain.generic_relevance import GenericRelevance
from lightning_xai.explain.gradcam import AttentionGradCAM
from lightning_xai.explain.gradient_rollout import GradientRollout
from lightning_xai.explain.input_relevance import FullLRP
from lightning_xai.explain.partial_lrp import PartialLRP
from lightning_xai.explain.raw_attention import RawAttention
from lightning_xai.explain.recording import record
from lightning_xai.explain.rollout import Rollout
from lightning_xai.explain.streams import Patches
from lightning_xai.explain.targets import class_targets
from lightning_xai.explain.transformer_attribution import TransformerAttribution
from lightning_xai.nets.vit import ViT, attention_names, build_vit

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
METHODS = [
    RawAttention(),
    Rollout(),
    AttentionGradCAM(),
    AttentionGradCAM(mean_over="row"),
    GradientRollout(),
    GenericRelevance(),
    TransformerAttribution(),
    PartialLRP(),
    FullLRP(),
    AttnLRP(),
]


def small_timm(**changes) -> ViT:
    torch.manual_seed(0)
    return build_vit("timm:vit_tiny_patch16_224", SMALL | changes)


def small_transformers(kind: str = "vit") -> ViT:
    import transformers

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    sizes |= {"image_size": 32, "patch_size": 8, "num_labels": 5}
    torch.manual_seed(0)
    config, model = {
        "vit": (transformers.ViTConfig, transformers.ViTForImageClassification),
        "deit": (transformers.DeiTConfig, transformers.DeiTForImageClassification),
        "deit_teacher": (transformers.DeiTConfig, transformers.DeiTForImageClassificationWithTeacher),
        "dinov2": (transformers.Dinov2Config, transformers.Dinov2ForImageClassification),
        "registers": (transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersForImageClassification),
    }[kind]
    return ViT(model(config(**sizes))).eval()


@pytest.mark.parametrize("build", [small_timm, small_transformers], ids=["timm", "transformers"])
def test_recorded_attention_is_that_of_the_network(build):
    """Probabilities are softmax(q k^T / sqrt(d)), computed here from the inputs of each attention module."""
    vit, images = build(), torch.randn(2, 3, 32, 32)
    inputs = []

    def keep(module, given, output):
        inputs.append((module, given[0]))

    for name in vit.attentions:
        vit.net.get_submodule(name).register_forward_hook(keep)
    plain = vit(images)["logits"]
    inputs.clear()
    with record(vit) as recording:
        outputs = vit(images)
    assert torch.allclose(outputs["logits"], plain, atol=1e-5)
    assert [site.module for site in vit.sites()] == [f"net.{name}" for name in vit.attentions] == list(recording)
    for site, (module, given) in zip(vit.sites(), inputs, strict=True):
        if hasattr(module, "qkv"):
            query, key, _ = module.qkv(given).chunk(3, -1)
        else:
            query, key = module.q_proj(given), module.k_proj(given)
        query, key = (x.unflatten(-1, (3, 8)).transpose(1, 2) for x in (query, key))
        expected = (query @ key.transpose(-2, -1) / 8**0.5).softmax(-1)
        assert torch.allclose(recording[site.module].probabilities, expected, atol=1e-6)


@pytest.mark.parametrize(
    "changes, size, grid, prefix",
    [
        ({}, (32, 32), (4, 4), 1),
        ({"reg_tokens": 4}, (32, 32), (4, 4), 5),
        ({"class_token": False, "global_pool": "avg"}, (32, 32), (4, 4), 0),
        ({"dynamic_img_size": True}, (24, 40), (3, 5), 1),
        ({"dynamic_img_size": True, "dynamic_img_pad": True}, (21, 40), (3, 5), 1),
    ],
)
def test_tokens_of_timm_networks(changes, size, grid, prefix):
    vit = small_timm(**changes)
    with record(vit) as recording:
        outputs = vit(torch.randn(1, 3, *size))
    assert vit.streams(outputs)["image"].layout == Patches(grid, prefix)
    assert recording.at("encoder", -1).probabilities.shape[-1] == prefix + grid[0] * grid[1]


@pytest.mark.parametrize("kind, prefix", [("vit", 1), ("deit", 2), ("dinov2", 1), ("registers", 5)])
def test_tokens_of_transformers_networks(kind, prefix):
    vit = small_transformers(kind)
    with record(vit) as recording:
        outputs = vit(torch.randn(1, 3, 32, 32))
    assert vit.streams(outputs)["image"].layout == Patches((4, 4), prefix)
    assert recording.at("encoder", 0).probabilities.shape == (1, 3, prefix + 16, prefix + 16)


def test_the_logits_depend_on_the_read_token_alone():
    """Whatever the last block does to all other tokens, the logits stay."""
    for vit in (small_timm(), small_transformers()):
        blocks = vit.net.get_submodule(vit.attentions[-1].rpartition(".")[0])

        def disturb(module, inputs, output):
            return torch.cat([output[:, :1], torch.randn_like(output[:, 1:])], 1)

        images = torch.randn(2, 3, 32, 32)
        plain = vit(images)
        assert {name: tokens.tolist() for name, tokens in vit.readout(plain).items()} == {"image": [0, 0]}
        blocks.register_forward_hook(disturb)
        assert torch.allclose(vit(images)["logits"], plain["logits"], atol=1e-6)


def test_attention_pooling_is_a_site_that_reads_the_image():
    vit = small_timm(class_token=False, global_pool="map")
    with record(vit) as recording:
        outputs = vit(torch.randn(2, 3, 32, 32))
    assert recording.at("pool", 0).probabilities.shape == (2, 3, 1, 16)
    assert vit.readout(outputs)["query"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="leaves out its 1 prefix"):
        small_timm(class_token=True, global_pool="map").sites()


@pytest.mark.parametrize("changes, first", [({}, 1), ({"reg_tokens": 2}, 3), ({"pool_include_prefix": True}, 0)])
def test_the_logits_depend_on_the_weighted_tokens_alone(changes, first):
    """A mean over patches: what the last block does to other tokens changes nothing, to patches something."""
    vit, images = small_timm(global_pool="avg", **changes), torch.randn(2, 3, 32, 32)
    plain = vit(images)
    weights = vit.readout(plain)["image"]
    assert weights.shape == (2, vit.prefix + 16)
    assert torch.allclose(weights[:, first:], torch.tensor(1 / (vit.prefix + 16 - first)))
    assert (weights[:, :first] == 0).all() and torch.allclose(weights.sum(1), torch.ones(2))
    tokens = []
    blocks = vit.net.get_submodule(vit.attentions[-1].rpartition(".")[0])
    blocks.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    vit(images)
    mean = torch.einsum("bn,bnc->bc", weights, tokens[0])
    assert torch.allclose(vit.net.head(vit.net.fc_norm(mean)), plain["logits"], atol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_mean_is_explained_by_the_mean_of_its_tokens_rows(method):
    """Where relevance is read row by row, the weighted rows of one target are the mean of a target for each patch."""
    if isinstance(method, AttentionGradCAM | FullLRP | AttnLRP):
        pytest.skip("reads no row, or all rows")
    vit, images = small_timm(global_pool="avg").double(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with method.recorded(vit) as recording:
        outputs = vit(images)
        whole = class_targets(outputs["logits"], 2, rows=vit.readout(outputs))
        single = [class_targets(outputs["logits"], 2, token=1 + patch) for patch in range(16)]
    together = method(recording, whole)["image"]
    alone = torch.stack([method(recording, targets)["image"] for targets in single]).mean(0)
    assert torch.allclose(together, alone, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "build", [small_timm, lambda: small_timm(global_pool="avg"), small_transformers], ids=["token", "mean", "hf"]
)
def test_features_are_what_the_classifier_reads(build):
    vit, images = build(), torch.randn(2, 3, 32, 32)
    outputs = vit(images)
    head = vit.net.head if hasattr(vit.net, "head") else vit.net.classifier
    assert outputs["features"].shape == (2, 24) and vit.num_classes == 5
    assert torch.allclose(head(outputs["features"]), outputs["logits"], atol=1e-6)
    whole = vit.net(images)
    assert torch.allclose(getattr(whole, "logits", whole), outputs["logits"], atol=1e-6)
    assert not head._forward_pre_hooks


def test_features_of_two_heads_are_their_mean():
    distilled = ViT(timm.create_model("deit_tiny_distilled_patch16_224", **SMALL)).eval()
    images = torch.randn(2, 3, 32, 32)
    outputs = distilled(images)
    assert torch.allclose(outputs["logits"], distilled.net(images), atol=1e-6)
    tokens = distilled.net.forward_features(images)
    assert torch.allclose(outputs["features"], tokens[:, :2].mean(1), atol=1e-6)
    assert small_transformers("deit_teacher")(images)["features"].shape == (2, 24)


def test_blocks_are_named_for_parameters_groups():
    for vit in (small_timm(), small_transformers()):
        names = [name for name, _ in vit.named_parameters()]
        assert len(vit.blocks()) == 2 and all(any(name.startswith(f"{b}.") for name in names) for b in vit.blocks())


@pytest.mark.parametrize(
    "vit, words",
    [
        (lambda: small_timm(global_pool="max"), "global_pool='max'"),
        (lambda: small_transformers("deit_teacher"), "model_type 'deit'"),
        (lambda: small_transformers("dinov2"), "model_type 'dinov2'"),
    ],
)
def test_other_poolings_have_no_row(vit, words):
    net = vit()
    with pytest.raises(ValueError, match=words):
        net.readout(net(torch.randn(1, 3, 32, 32)))


def test_many_families_of_timm_declare_themselves():
    for name, arguments in {
        "deit_tiny_patch16_224": {},
        "eva02_tiny_patch14_224": {},
        "beit_base_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads": 3},
        "vit_small_patch16_dinov3": {"embed_dim": 48, "depth": 2, "num_heads": 3},
        "naflexvit_base_patch16_gap": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    }.items():
        vit = ViT(timm.create_model(name, num_classes=3, **arguments)).eval()
        size = vit.net.patch_embed.img_size if hasattr(vit.net, "patch_embed") else (32, 64)
        with torch.no_grad(), record(vit) as recording:
            outputs = vit(torch.randn(1, 3, *size))
        layout = vit.streams(outputs)["image"].layout
        tokens = recording.at("encoder", 0).probabilities.shape[-1]
        assert tokens == layout.prefix + layout.shape[0] * layout.shape[1], name


def test_what_is_no_vision_transformer_is_refused():
    with pytest.raises(TypeError, match=r"Linear is no plain vision transformer.*it has 0 lists"):
        attention_names(nn.Linear(2, 2))
    windows = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2)}
    with pytest.raises(TypeError, match=r"SwinTransformer is no plain vision transformer.*it has 2 lists"):
        build_vit("timm:swin_tiny_patch4_window7_224", windows)
    with pytest.raises(ValueError, match="timm has no network 'vit_none'"):
        build_vit("timm:vit_none")
    with pytest.raises(ValueError, match="cannot be built with arguments"):
        build_vit("timm:vit_tiny_patch16_224", {"num_heads": 5})
    with pytest.raises(FileNotFoundError, match=r"no folder with a config\.json"):
        build_vit("/nowhere/vit")
    with pytest.raises(ValueError, match="brings its own arguments"):
        build_vit("/nowhere/vit", weights="file.pth")


def test_a_folder_of_transformers(tmp_path):
    vit, images = small_transformers(), torch.randn(1, 3, 32, 32)
    vit.net.save_pretrained(tmp_path)
    assert torch.allclose(build_vit(str(tmp_path))(images)["logits"], vit(images)["logits"], atol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("build", [small_timm, small_transformers], ids=["timm", "transformers"])
def test_every_method_explains_it_whatever_the_batch(build, method):
    """Two classes of three images, under inference_mode: the same as each alone, and nothing stays behind."""
    vit, images = build().double(), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    classes = torch.tensor([[0, 3], [1, 2], [4, 0]])
    with torch.inference_mode():
        together = explain(vit, (images,), lambda outputs: class_targets(outputs["logits"], classes), method)
    assert together.grid().shape == (6, 4, 4) and together.on_pixels((32, 32)).shape == (6, 32, 32)
    assert together.grid().isfinite().all() and together.grid().std() > 0
    for target, (image, label) in enumerate((i, int(label)) for i in range(3) for label in classes[i]):
        alone = explain(vit, (images[image][None],), partial(logit_of, label), method)
        assert torch.allclose(alone.relevance["image"][0], together.relevance["image"][target], rtol=1e-6, atol=1e-9)
    assert all(parameter.grad is None for parameter in vit.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())


def logit_of(label: int, outputs: dict):
    return class_targets(outputs["logits"], label)


def test_images_of_another_size_than_it_was_built_for_are_refused():
    arguments = {"img_size": (16, 24), "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2, "num_classes": 3}
    vit = build_vit("timm:vit_tiny_patch16_224", arguments)
    assert vit(torch.zeros(1, 3, 16, 24))["logits"].shape == (1, 3)
    with pytest.raises(ValueError, match="images of 24 x 24 pixels do not fit a network built for 16 x 24"):
        vit(torch.zeros(1, 3, 24, 24))
    free = build_vit("timm:vit_tiny_patch16_224", arguments | {"dynamic_img_size": True})
    assert free(torch.zeros(1, 3, 24, 24))["grid"] == (3, 3)
