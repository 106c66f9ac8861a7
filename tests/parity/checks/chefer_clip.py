"""CLIP: relevance of image and text for pairs, the tokenizer and the preparation of pictures."""

import tempfile
from pathlib import Path

import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from reference_arrays import compare_defined, tolerate
from torch import Tensor

from checks import check
from lightning_xai.explain.explanation import min_max
from lightning_xai.explain.generic_relevance import GenericRelevance, positive_gradient_attention
from lightning_xai.explain.linear_maps import DenseMap
from lightning_xai.explain.recording import Recording, record
from lightning_xai.explain.row_propagation import row_of_product
from lightning_xai.explain.targets import Targets, pair_targets
from lightning_xai.nets.clip import CLIP
from lightning_xai.nets.clip_checkpoints import clip_from_openai, read_openai_weights
from lightning_xai.nets.clip_inputs import CLIPTokenizer, clip_preprocess

VOCABULARY = Path("data", "tokenizers", "clip", "bpe_simple_vocab_16e6.txt.gz")
TOWERS = {"image": "visual", "text": "text"}
STARTS = {"default": -1, "start0": 0}


def build(case) -> CLIP:
    """The network of the case's checkpoint, read from a file."""
    config = case.config
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.pt"
        torch.save(case.state_dict(), file)
        weights = read_openai_weights(file)
    return CLIP(clip_from_openai(weights, "case", config.get("vision_heads"), config.get("transformer_heads"))).eval()


@check("chefer/clip")
def clip(case):
    tolerate(case, lambda name: (1e-5, 1e-4))
    net, tokens = build(case), case.inputs["tokens"]
    images = case.inputs["image"].expand(len(tokens), -1, -1, -1)
    with record(net, gradients=True) as recording:
        outputs = net(images, tokens)
        targets = pair_targets(outputs["logits_per_image"], net.readout(outputs)["text"])
    case.compare("image_features", outputs["image_features"][:1])
    for name in ("text_features", "logits_per_image", "logits_per_text"):
        case.compare(name, outputs[name])
    compare_attention(case, recording, targets)

    reduced = recording.reduced_gradients(targets, positive_gradient_attention)
    cams = {
        stream: [reduced[site.module] for site in recording.sites if site.part == part]
        for stream, part in TOWERS.items()
    }
    case.compare("image_cam_last", cams["image"][-1])
    case.compare("text_cam_last_eot", cams["text"][-1][torch.arange(len(tokens)), targets.rows["text"]])
    for name, start in STARTS.items():
        relevance = GenericRelevance(start_layer=start)(recording, targets)
        case.compare(f"image_relevance_{name}", relevance["image"][:, 1:])
        compare_defined(case, f"text_scores_{name}", net.word_scores(relevance["text"], tokens))
        case.compare(f"R_text_{name}", all_rows(cams["text"][start:]))
        if f"heatmap_text0_{name}" in case.outputs:
            layout = net.streams(outputs)["image"].layout
            grid = relevance["image"][:1, layout.prefix :].reshape(1, 1, *layout.shape)
            size = case.outputs[f"heatmap_text0_{name}"].shape
            compare_defined(case, f"heatmap_text0_{name}", min_max(F.interpolate(grid, size, mode="bilinear")[:, 0])[0])


def all_rows(layers: list[Tensor]) -> Tensor:
    """The whole relevance matrix (T, N, N) of layers (T, N, N): the row of every token."""
    identity = torch.eye(layers[0].shape[-1]).expand_as(layers[0])
    return row_of_product([DenseMap(layer) for layer in layers], identity, identity=1.0, normalise=False)


def compare_attention(case, recording: Recording, targets: Targets) -> None:
    """Probabilities and their gradients: whole in small cases, else the row of the class token or the end of text."""
    gradients = recording.reduced_gradients(targets, lambda record, gradient: gradient)
    for stream, part in TOWERS.items():
        modules = [site.module for site in recording.sites if site.part == part]
        rows = targets.rows[stream]
        pair = torch.arange(len(rows))
        for name, layers in {
            "attn": torch.stack([recording[module].probabilities for module in modules]),
            "attn_grad": torch.stack([gradients[module] for module in modules]),
        }.items():
            # the image is the same in every pair, and its attention was stored once
            once = stream == "image" and name == "attn"
            if f"{stream}_{name}" in case.outputs:
                length = case.outputs[f"{stream}_{name}"].shape[-1]
                whole = layers[..., :length, :length]
                case.compare(f"{stream}_{name}", whole[:, 0] if once else whole)
            for suffix in ("cls", "eot"):
                if f"{stream}_{name}_{suffix}" in case.outputs:
                    row = layers[:, pair, :, rows].transpose(0, 1)
                    case.compare(f"{stream}_{name}_{suffix}", row[:, 0] if once else row)
            if f"{stream}_{name}_abs_sum" in case.outputs:
                case.compare(f"{stream}_{name}_abs_sum", layers.abs().sum((-2, -1)))


@check("chefer/clip_tokenizer_preprocess")
def clip_tokenizer_preprocess(case):
    gray_level = 0.0 if PIL.__version__ == case.config["pillow"] else 0.015
    tolerate(case, lambda name: (1e-6 + gray_level, 0.0))
    tokenizer = CLIPTokenizer(vocabulary(case))
    tokens = tokenizer(case.config["texts"], case.config["context_length"])
    case.compare("tokens", tokens)
    for text, row, expected in zip(case.config["texts"], tokens, case.config["decoded_tokens"], strict=True):
        words = list(tokenizer.words(row[1 : int((row != 0).sum()) - 1]))
        if words != expected:
            case.failures.append(f"words of {text!r}: {words} instead of {expected}")
    for name in case.outputs:
        if name.startswith("preprocess"):
            size, index = name.removeprefix("preprocess").split("_")
            picture = Image.fromarray(case.inputs[f"uint8_{index}"].numpy())
            case.compare(name, clip_preprocess(picture, int(size)))


def vocabulary(case) -> Path:
    """CLIP's vocabulary beside the cases, or beside those that are taken by default."""
    beside = [*case.folder.resolve().parents, Path(__file__).resolve().parents[4] / "shared"]
    found = [folder / VOCABULARY for folder in beside if (folder / VOCABULARY).is_file()]
    if not found:
        raise FileNotFoundError(f"no {VOCABULARY} in {', '.join(map(str, beside))}")
    return found[0]
