"""CLIP (Radford et al., ICML 2021, arXiv 2103.00020) as transformers has it, declared as it is.

Letters: B pairs of one image and one text each, T text tokens. The network inside is not changed: it is called as it
is, and its own checkpoints fit it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_xai.explain.streams import Patches, Site, Stream, Words
from lightning_xai.nets.clip_inputs import CLIPTokenizer
from lightning_xai.nets.word_tokenizer import WordTokenizer

TOWERS = {"visual": ("vision_model", "image"), "text": ("text_model", "text")}
OLD_END = 2  # eos_token_id of files older than transformers 4.31, where the largest token marks the end


class Tokenizer(Protocol):
    """Texts to token numbers (B, T), each with start and end, and back to words."""

    def __len__(self) -> int: ...

    def __call__(self, texts: str | Sequence[str], context: int) -> Tensor: ...

    def words(self, tokens: Sequence[int]) -> tuple[str, ...]: ...


class CLIP(nn.Module):
    """transformers' `CLIPModel`, together with its sites and streams.

    images (B, 3, h, w), tokens (B', T) -> {"logits_per_image": (B, B'), "logits_per_text": (B', B), "image_features":
    (B, C), "text_features": (B', C), not normalised, "tokens", "grid": (h', w')}. To explain pairs, hand in as many
    images as texts: pair i is image i with text i.
    tokenizer: turns token numbers back into words; without it a word is the number.
    """

    def __init__(self, net: nn.Module, tokenizer: Tokenizer | None = None):
        super().__init__()
        towers = [getattr(getattr(net, tower, None), "encoder", None) for tower, _ in TOWERS.values()]
        if not all(hasattr(tower, "layers") for tower in towers):
            raise TypeError(
                f"{type(net).__name__} has no vision_model.encoder.layers and text_model.encoder.layers: give a "
                "CLIPModel of transformers, or read a checkpoint with build_clip"
            )
        self.net = net
        self.tokenizer = tokenizer

    def forward(self, images: Tensor, tokens: Tensor) -> dict:
        net = self.net
        image = net.visual_projection(net.vision_model(pixel_values=images).pooler_output)
        text = net.text_projection(net.text_model(input_ids=tokens).pooler_output)
        cosines = image / image.norm(dim=-1, keepdim=True) @ (text / text.norm(dim=-1, keepdim=True)).T
        logits = self.scale() * cosines
        return {
            "logits_per_image": logits,
            "logits_per_text": logits.T,
            "image_features": image,
            "text_features": text,
            "tokens": tokens,
            "grid": tuple(size // net.config.vision_config.patch_size for size in images.shape[-2:]),
        }

    def sites(self) -> list[Site]:
        """Every attention of both towers, in order of execution."""
        return [
            Site(f"net.{tower}.encoder.layers.{i}.self_attn", "dense", writes=stream, reads=stream, part=part, layer=i)
            for part, (tower, stream) in TOWERS.items()
            for i in range(len(self.net.get_submodule(tower).encoder.layers))
        ]

    def streams(self, outputs: Mapping) -> dict[str, Stream]:
        """Where the tokens of a forward pass lie, from its outputs."""
        tokens = outputs["tokens"]
        said = [row[: end + 1] for row, end in zip(tokens.tolist(), self.ends(tokens).tolist(), strict=True)]
        if self.tokenizer is None:
            words = tuple(tuple(f"#{token} " for token in row) for row in said)
        else:
            words = tuple(self.tokenizer.words(row) for row in said)
        marks = tuple(sorted({row[0] for row in words} | {row[-1] for row in words}))
        return {
            "image": Stream("image", Patches(outputs["grid"], prefix=1)),
            "text": Stream("text", Words(words, marks)),
        }

    def readout(self, outputs: Mapping) -> dict[str, Tensor]:
        """By stream, the token (B,) of each sample that the logits are computed from: class token and end of text."""
        images = torch.zeros(len(outputs["image_features"]), dtype=torch.int64, device=outputs["tokens"].device)
        return {"image": images, "text": self.ends(outputs["tokens"])}

    def ends(self, tokens: Tensor) -> Tensor:
        """The place (B,) of the first end-of-text token of each text."""
        end = self.net.config.text_config.eos_token_id
        return tokens.argmax(-1) if end == OLD_END else (tokens == end).int().argmax(-1)

    @property
    def context(self) -> int:
        """How many tokens of a text are read."""
        return self.net.config.text_config.max_position_embeddings

    @property
    def image_size(self) -> int:
        """Side in pixels of the images."""
        return self.net.config.vision_config.image_size

    def scale(self) -> Tensor:
        """What cosines are multiplied by to be logits, a scalar."""
        return self.net.logit_scale.exp()

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token numbers (B, T) of texts; raises ValueError without a tokenizer, or for a text that is too long."""
        if self.tokenizer is None:
            raise ValueError(f"this network cannot read {texts[0]!r}: build it with its vocabulary")
        return self.tokenizer(list(texts), self.context)

    def word_scores(self, relevance: Tensor, tokens: Tensor) -> Tensor:
        """Shares (B, T) of the words in a row of relevance (B, T): the tokens between start and end of text sum to 1.

        All other tokens are 0, and so is a text without words, or without any relevance on them.
        """
        place = torch.arange(tokens.shape[1], device=tokens.device)
        words = relevance.masked_fill((place == 0) | (place >= self.ends(tokens)[:, None]), 0)
        total = words.sum(-1, keepdim=True)
        return words / total.masked_fill(total == 0, 1)


def new_clip(
    vocabulary: str | Path | Sequence[str],
    image_size: int = 224,
    patch_size: int = 32,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    text_width: int = 512,
    text_layers: int = 12,
    text_heads: int = 8,
    embed_dim: int = 512,
    context: int = 77,
    dropout: float = 0.0,
) -> CLIP:
    """CLIP with random weights, by default of the size of ViT-B/32.

    vocabulary: the file of the published tokenizer's merges, or a list of words, of which each becomes a token.
    context: tokens of a text. dropout: of the attention.
    """
    from transformers import CLIPConfig, CLIPModel

    read = CLIPTokenizer if isinstance(vocabulary, str | Path) else WordTokenizer
    tokenizer: Tokenizer = read(vocabulary)
    shared = {"hidden_act": "quick_gelu", "projection_dim": embed_dim, "attention_dropout": dropout}
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "image_size": image_size, "patch_size": patch_size}
    vision |= {"num_hidden_layers": layers, "num_attention_heads": heads}
    text = {"hidden_size": text_width, "intermediate_size": 4 * text_width, "max_position_embeddings": context}
    text |= {"num_hidden_layers": text_layers, "num_attention_heads": text_heads, "vocab_size": len(tokenizer)}
    text |= {"bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1, "pad_token_id": 0}
    config = CLIPConfig(text_config=text | shared, vision_config=vision | shared, projection_dim=embed_dim)
    return CLIP(CLIPModel(config), tokenizer)


def load_clip_checkpoint(clip: CLIP, path: str | Path) -> None:
    """Load weights into a `CLIP` of their size: a file of OpenAI's or of this project, or a folder of transformers.

    Raises FileNotFoundError or ValueError: nothing there, missing or unexpected keys, other shapes (all named). The
    network is unchanged when it raises.
    """
    from lightning_xai.nets.clip_checkpoints import load_checked, read_clip_weights

    load_checked(clip.net, read_clip_weights(path), path)


def build_clip(path: str | Path, vocabulary: str | Path | None = None) -> CLIP:
    """CLIP from a local checkpoint, in evaluation mode and float32.

    path: a file of OpenAI's (TorchScript archive or state dict, ViT towers), or a folder in transformers' layout.
    vocabulary: the tokenizer's merges; default: the folder's merges.txt where there is one.
    Raises FileNotFoundError for a missing file or folder, ValueError where the checkpoint does not fit.
    """
    path = Path(path)
    if path.is_dir():
        from transformers import CLIPModel

        net = CLIPModel.from_pretrained(path, local_files_only=True).float()
        if vocabulary is None and (path / "merges.txt").is_file():
            vocabulary = path / "merges.txt"
    else:
        from lightning_xai.nets.clip_checkpoints import clip_from_openai, read_openai_weights

        net = clip_from_openai(read_openai_weights(path), path)
    return CLIP(net, None if vocabulary is None else CLIPTokenizer(vocabulary)).eval()
