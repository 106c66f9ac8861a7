"""CLIP (Radford et al., ICML 2021, arXiv 2103.00020) as transformers has it, declared as it is.

Letters: B pairs of one image and one text each, T text tokens. The network inside is not changed: it is called as it
is, and its own checkpoints fit it.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_xai.explain.streams import Patches, Site, Stream, Words
from lightning_xai.nets.clip_inputs import CLIPTokenizer

TOWERS = {"visual": ("vision_model", "image"), "text": ("text_model", "text")}
OLD_END = 2  # eos_token_id of files older than transformers 4.31, where the largest token marks the end


class CLIP(nn.Module):
    """transformers' `CLIPModel`, together with its sites and streams.

    images (B, 3, h, w), tokens (B', T) -> {"logits_per_image": (B, B'), "logits_per_text": (B', B), "image_features":
    (B, C), "text_features": (B', C), not normalised, "tokens", "grid": (h', w')}. To explain pairs, hand in as many
    images as texts: pair i is image i with text i.
    tokenizer: turns token numbers back into words; without it a word is the number.
    """

    def __init__(self, net: nn.Module, tokenizer: CLIPTokenizer | None = None):
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
        logits = net.logit_scale.exp() * cosines
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
            words = tuple(tuple(f"#{token}" for token in row) for row in said)
        else:
            words = tuple(self.tokenizer.words(row) for row in said)
        return {"image": Stream("image", Patches(outputs["grid"], prefix=1)), "text": Stream("text", Words(words))}

    def readout(self, outputs: Mapping) -> dict[str, Tensor]:
        """By stream, the token (B,) of each sample that the logits are computed from: class token and end of text."""
        images = torch.zeros(len(outputs["image_features"]), dtype=torch.int64, device=outputs["tokens"].device)
        return {"image": images, "text": self.ends(outputs["tokens"])}

    def ends(self, tokens: Tensor) -> Tensor:
        """The place (B,) of the first end-of-text token of each text."""
        end = self.net.config.text_config.eos_token_id
        return tokens.argmax(-1) if end == OLD_END else (tokens == end).int().argmax(-1)

    def word_scores(self, relevance: Tensor, tokens: Tensor) -> Tensor:
        """Shares (B, T) of the words in a row of relevance (B, T): the tokens between start and end of text sum to 1.

        All other tokens are 0, and so is a text without words, or without any relevance on them.
        """
        place = torch.arange(tokens.shape[1], device=tokens.device)
        words = relevance.masked_fill((place == 0) | (place >= self.ends(tokens)[:, None]), 0)
        total = words.sum(-1, keepdim=True)
        return words / total.masked_fill(total == 0, 1)


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
