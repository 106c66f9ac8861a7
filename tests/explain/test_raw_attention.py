"""Raw attention is the recorded rows."""

import pytest
import torch

from lightning_xai.explain.raw_attention import RawAttention
from lightning_xai.explain.recording import record
from lightning_xai.explain.targets import class_targets, detection_targets


def test_rows_of_the_chosen_layers(encoder_decoder, map_tokens):
    with torch.no_grad():
        encoder_decoder.by("kept")(map_tokens)
        kept = {site.module: encoder_decoder.get_submodule(site.module).kept for site in encoder_decoder.sites()}
        with record(encoder_decoder.by("sdpa")) as recording:
            logits = encoder_decoder(map_tokens)["pred_logits"]
    targets = detection_targets(logits, torch.tensor([2, 0]), torch.tensor([1, 3]))
    last, first, mean = (RawAttention(layer)(recording, targets) for layer in (-1, 0, "mean"))

    def row(name):
        return kept[name][[2, 0], :, [1, 3]].mean(1)

    torch.testing.assert_close(last["image"], row("cross_attn.1"))
    torch.testing.assert_close(first["query"], row("self_attn.0"))
    torch.testing.assert_close(mean["image"], (row("cross_attn.0") + row("cross_attn.1")) / 2)


def test_unknown_layer(classifier, image_tokens):
    with record(classifier) as recording:
        targets = class_targets(classifier(image_tokens))
    with pytest.raises(ValueError, match="layer is 2, but image reads image in layers 0 to 1; name one or 'mean'"):
        RawAttention(2)(recording, targets)
