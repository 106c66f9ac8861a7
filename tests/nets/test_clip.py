"""CLIP: OpenAI's checkpoints give OpenAI's numbers through transformers' network, and its declaration holds."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from lightning_xai.explain.targets import pair_targets
from lightning_xai.explain.transformer_attribution import TransformerAttribution
from lightning_xai.nets.clip import CLIP, build_clip, load_clip_checkpoint, new_clip
from lightning_xai.nets.clip_checkpoints import clip_from_openai, read_openai_weights

WORDS, CONTEXT, PATCH, SIDE, EMBED = 30, 8, 4, 3, 20
WIDTHS = {"visual.transformer.": 128, "transformer.": 64}
TEXTS = torch.tensor([[28, 3, 4, 29, 0, 0, 0, 0], [28, 7, 29, 0, 0, 0, 0, 0]])
METHODS = [
    RawAttention(),
    Rollout(),
    AttentionGradCAM(),
    GradientRollout(),
    GenericRelevance(),
    GenericRelevance(start_layer=-1),
    TransformerAttribution(),
    PartialLRP(),
    FullLRP(),
    AttnLRP(),
]


def openai_weights(seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the names of OpenAI's files, two layers a tower."""
    width, text_width = WIDTHS.values()
    shapes = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (SIDE**2 + 1, width),
        "visual.proj": (width, EMBED),
        "visual.conv1.weight": (width, 3, PATCH, PATCH),
        "positional_embedding": (CONTEXT, text_width),
        "text_projection": (text_width, EMBED),
        "token_embedding.weight": (WORDS, text_width),
        "logit_scale": (),
    }
    norms = {"visual.ln_pre": width, "visual.ln_post": width, "ln_final": text_width}
    for tower, w in WIDTHS.items():
        for i in range(2):
            block = f"{tower}resblocks.{i}."
            shapes |= {
                f"{block}attn.in_proj_weight": (3 * w, w),
                f"{block}attn.in_proj_bias": (3 * w,),
                f"{block}attn.out_proj.weight": (w, w),
                f"{block}attn.out_proj.bias": (w,),
                f"{block}mlp.c_fc.weight": (4 * w, w),
                f"{block}mlp.c_fc.bias": (4 * w,),
                f"{block}mlp.c_proj.weight": (w, 4 * w),
                f"{block}mlp.c_proj.bias": (w,),
            }
            norms |= {f"{block}ln_1": w, f"{block}ln_2": w}
    shapes |= {f"{name}.{leaf}": (w,) for name, w in norms.items() for leaf in ("weight", "bias")}
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def tower(weights: dict, x: Tensor, name: str, mask: Tensor | None) -> Tensor:
    """Pre-norm blocks with QuickGELU, by torch's own multi-head attention."""
    width = WIDTHS[name]
    for i in range(2):
        prefix = f"{name}resblocks.{i}."
        block = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        attention = nn.MultiheadAttention(width, width // 64, batch_first=True)
        attention.load_state_dict({k.removeprefix("attn."): v for k, v in block.items() if k.startswith("attn.")})
        h = F.layer_norm(x, (width,), block["ln_1.weight"], block["ln_1.bias"])
        x = x + attention(h, h, h, attn_mask=mask)[0]
        h = F.layer_norm(x, (width,), block["ln_2.weight"], block["ln_2.bias"])
        h = F.linear(h, block["mlp.c_fc.weight"], block["mlp.c_fc.bias"])
        x = x + F.linear(h * torch.sigmoid(1.702 * h), block["mlp.c_proj.weight"], block["mlp.c_proj.bias"])
    return x


def features(weights: dict, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP as the paper describes it, written down here once more."""
    width, text_width = WIDTHS.values()
    x = F.conv2d(images, weights["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([weights["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
    x = x + weights["visual.positional_embedding"]
    x = F.layer_norm(x, (width,), weights["visual.ln_pre.weight"], weights["visual.ln_pre.bias"])
    x = tower(weights, x, "visual.transformer.", None)[:, 0]
    x = F.layer_norm(x, (width,), weights["visual.ln_post.weight"], weights["visual.ln_post.bias"])
    causal = torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1)
    y = weights["token_embedding.weight"][tokens] + weights["positional_embedding"]
    y = tower(weights, y, "transformer.", causal)
    y = F.layer_norm(y, (text_width,), weights["ln_final.weight"], weights["ln_final.bias"])
    y = y[torch.arange(len(y)), tokens.argmax(-1)]
    return x @ weights["visual.proj"], y @ weights["text_projection"]


def small_clip(seed: int = 0) -> CLIP:
    return CLIP(clip_from_openai(openai_weights(seed))).eval()


@torch.no_grad()
def test_openai_weights_give_openai_numbers():
    weights, images = openai_weights(), torch.randn(2, 3, 12, 12)
    image, text = features(weights, images, TEXTS)
    outputs = small_clip()(images, TEXTS)
    assert torch.allclose(outputs["image_features"], image, atol=1e-4)
    assert torch.allclose(outputs["text_features"], text, atol=1e-4)
    expected = weights["logit_scale"].exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    assert torch.allclose(outputs["logits_per_image"], expected, atol=1e-5)
    assert torch.equal(outputs["logits_per_text"], outputs["logits_per_image"].T)


@torch.no_grad()
def test_logits_are_those_of_transformers():
    clip, images = small_clip(), torch.randn(3, 3, 12, 12)
    theirs = clip.net(input_ids=TEXTS, pixel_values=images).logits_per_image
    assert torch.allclose(clip(images, TEXTS)["logits_per_image"], theirs, atol=1e-5)


def test_sites_streams_and_the_tokens_that_are_read():
    clip = small_clip()
    with record(clip) as recording:
        outputs = clip(torch.randn(2, 3, 12, 12), TEXTS)
    assert [(site.part, site.layer, site.reads) for site in clip.sites()] == [
        ("visual", 0, "image"), ("visual", 1, "image"), ("text", 0, "text"), ("text", 1, "text")
    ]  # fmt: skip
    assert recording.at("visual", 1).probabilities.shape == (2, 2, 10, 10)
    text = recording.at("text", 0).probabilities
    assert text.shape == (2, 1, CONTEXT, CONTEXT)
    assert torch.equal(text, text.tril()) and torch.allclose(text.sum(-1), torch.ones(2, 1, CONTEXT))
    streams = clip.streams(outputs)
    assert streams["image"].layout == Patches((3, 3), prefix=1)
    assert streams["text"].layout.texts == (("#28 ", "#3 ", "#4 ", "#29 "), ("#28 ", "#7 ", "#29 "))
    places = {name: tokens.tolist() for name, tokens in clip.readout(outputs).items()}
    assert places == {"image": [0, 0], "text": [3, 2]}


def test_scores_of_words_are_shares():
    clip = small_clip()
    relevance = torch.tensor([[5.0, 1.0, 3.0, 9.0, 2.0, 0, 0, 0], [5.0, 0.25, 9.0, 1.0, 0, 0, 0, 0]])
    scores = clip.word_scores(relevance, TEXTS)
    assert scores.tolist() == [[0, 0.25, 0.75, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert not clip.word_scores(torch.zeros(2, CONTEXT), TEXTS).any()
    assert not clip.word_scores(relevance[:1], torch.tensor([[28, 29, 0, 0, 0, 0, 0, 0]])).any()  # no word at all


def test_files_of_every_kind(tmp_path):
    weights, images = openai_weights(), torch.randn(2, 3, 12, 12)
    expected = small_clip()(images, TEXTS)["logits_per_image"]
    torch.save({k: v.half() for k, v in weights.items()}, tmp_path / "half.pt")
    assert {v.dtype for v in read_openai_weights(tmp_path / "half.pt").values()} == {torch.float32}
    torch.save({"state_dict": weights}, tmp_path / "wrapped.pt")
    as_torchscript(weights).save(tmp_path / "archive.pt")
    clip = small_clip(seed=1)
    small_clip().net.save_pretrained(tmp_path / "folder")
    for name in ("wrapped.pt", "archive.pt", "folder"):
        clip = build_clip(tmp_path / name)
        assert torch.allclose(clip(images, TEXTS)["logits_per_image"], expected, atol=1e-5), name


def as_torchscript(weights: dict[str, Tensor]) -> torch.jit.ScriptModule:
    """A TorchScript archive whose state dict has these names, and the three numbers of OpenAI's archives."""
    root = nn.Module()
    numbers = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    for key, tensor in (weights | numbers).items():
        *parents, leaf = key.split(".")
        module = root
        for name in parents:
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module._modules[name]
        module.register_buffer(leaf, tensor)
    return torch.jit.script(root)


def test_what_does_not_fit_is_named(tmp_path):
    weights = openai_weights()
    without = {k: v for k, v in weights.items() if k != "ln_final.bias"}
    with pytest.raises(ValueError, match=r"missing text_model.final_layer_norm.bias"):
        clip_from_openai(without)
    with pytest.raises(ValueError, match="unexpected extra"):
        clip_from_openai(weights | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"it lacks 'visual.conv1.weight'"):
        clip_from_openai({"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="has a ResNet for images"):
        clip_from_openai(weights | {"visual.layer1.0.conv1.weight": torch.zeros(1)})
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="is no CLIP checkpoint"):
        build_clip(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError):
        build_clip(tmp_path / "missing.pt")
    with pytest.raises(TypeError, match=r"Linear has no vision_model.encoder.layers"):
        CLIP(nn.Linear(1, 1))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_every_method_explains_pairs_whatever_the_batch(method):
    """Image and text of each pair: the same as the pair alone, and nothing after the end of the text."""
    torch.manual_seed(0)
    clip, images = small_clip().double(), torch.randn(2, 3, 12, 12, dtype=torch.float64)

    def pairs(outputs: dict):
        return pair_targets(outputs["logits_per_image"], clip.readout(outputs)["text"])

    with torch.no_grad():
        together = explain(clip, (images, TEXTS), pairs, method)
    assert together.on_pixels((12, 12)).shape == (2, 12, 12)
    if not isinstance(method, AttentionGradCAM | PartialLRP):  # which cut off what is negative, at times all
        assert all(relevance.any() for relevance in together.relevance.values())
    assert [[word for word, _ in together.words(i)] for i in range(2)] == [
        ["#28 ", "#3 ", "#4 ", "#29 "],
        ["#28 ", "#7 ", "#29 "],
    ]
    for i, end in enumerate((3, 2)):
        assert not together.relevance["text"][i, end + 1 :].any()
        alone = explain(clip, (images[i : i + 1], TEXTS[i : i + 1]), pairs, method)
        for stream in ("image", "text"):
            assert together.relevance[stream][i].isfinite().all()
            ours, theirs = alone.relevance[stream][0], together.relevance[stream][i]
            assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9), stream


def test_a_new_network_has_the_sizes_of_the_published_one():
    """ViT-B/32 by the number of its parameters, as OpenAI's file has it."""
    with torch.device("meta"):
        net = new_clip(list(map(str, range(49408 - 2))))
    assert sum(parameter.numel() for parameter in net.parameters()) == 151_277_313
    assert (net.context, net.image_size) == (77, 224)


def tiny_clip(seed: int = 0, **changes) -> CLIP:
    torch.manual_seed(seed)
    sizes = {"width": 16, "layers": 1, "heads": 2, "text_width": 16, "text_layers": 1, "text_heads": 2, "context": 5}
    return new_clip(["a", "star"], **{"image_size": 16, "patch_size": 8, "embed_dim": 4, **sizes, **changes}).eval()


def test_words_and_marks_of_the_text():
    net = tiny_clip()
    outputs = net(torch.zeros(2, 3, 16, 16), net.tokens(["a star", "star"]))
    words = net.streams(outputs)["text"].layout
    assert words.texts == (
        ("<|startoftext|>", "a ", "star ", "<|endoftext|>"),
        ("<|startoftext|>", "star ", "<|endoftext|>"),
    )
    assert set(words.marks) == {"<|startoftext|>", "<|endoftext|>"}
    with pytest.raises(ValueError, match="cannot read 'a cat': build it with its vocabulary"):
        CLIP(net.net).tokens(["a cat"])


def test_weights_of_every_origin_are_loaded(tmp_path):
    net, other = tiny_clip(0), tiny_clip(1)
    torch.save({"state_dict": {f"net.{key}": value for key, value in net.state_dict().items()}}, tmp_path / "ours.ckpt")
    net.net.save_pretrained(tmp_path / "folder")
    for place in ("ours.ckpt", "folder"):
        other = tiny_clip(1)
        load_clip_checkpoint(other, tmp_path / place)
        assert all(torch.equal(other.state_dict()[key], value) for key, value in net.state_dict().items())

    torch.save(openai_weights(), tmp_path / "openai.pt")
    published = clip_from_openai(openai_weights())
    sizes = {"image_size": SIDE * PATCH, "patch_size": PATCH, "width": 128, "text_width": 64, "embed_dim": EMBED}
    layers = {"layers": 2, "text_layers": 2, "heads": 2, "text_heads": 1, "context": CONTEXT}
    same = new_clip([str(i) for i in range(WORDS - 2)], **sizes, **layers)
    load_clip_checkpoint(same, tmp_path / "openai.pt")
    images = torch.randn(2, 3, SIDE * PATCH, SIDE * PATCH)
    with torch.no_grad():
        torch.testing.assert_close(
            same.eval()(images, TEXTS)["logits_per_image"], CLIP(published)(images, TEXTS)["logits_per_image"]
        )


def test_weights_that_do_not_fit_are_named(tmp_path):
    torch.save(openai_weights(), tmp_path / "openai.pt")
    net = tiny_clip()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"openai.pt' does not fit this CLIP model .*unexpected .*other shapes"):
        load_clip_checkpoint(net, tmp_path / "openai.pt")
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    with pytest.raises(FileNotFoundError, match=r"'none\.pt' does not exist"):
        load_clip_checkpoint(net, "none.pt")
