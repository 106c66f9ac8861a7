"""Streams that read each other, against the authors' rules written out for one sample at a time."""

import pytest
import torch
from torch import nn

from lightning_xai.explain.explanation import explain
from lightning_xai.explain.generic_relevance import GenericRelevance
from lightning_xai.explain.recording import record
from lightning_xai.explain.streams import Patches, Site, Stream, Words
from lightning_xai.explain.targets import class_targets

TEXT, IMAGE = 4, 6


@pytest.fixture
def two_streams(classifier):
    """Text and image each look at themselves, then at each other, then at themselves, twice; text token 0 answers."""
    attention = type(classifier.layers[0])

    class TwoStreams(type(classifier).__mro__[1]):
        def __init__(self):
            super().__init__()
            self.text, self.image = (nn.ModuleList(attention() for _ in range(3)) for _ in range(2))
            self.to_text, self.to_image = (nn.ModuleList(attention() for _ in range(2)) for _ in range(2))
            self.head = nn.Linear(16, 5)
            self.draw()

        def forward(self, tokens):
            text, image = tokens.split([TEXT, IMAGE], 1)
            for i in range(3):
                text = nn.functional.layer_norm(text + self.text[i](text, text), (16,))
                image = nn.functional.layer_norm(image + self.image[i](image, image), (16,))
                if i < 2:
                    text, image = text + self.to_text[i](text, image), image + self.to_image[i](image, text)
            return self.head(text[:, 0])

        def sites(self):
            found = []
            for i in range(3):
                found.append(Site(f"text.{i}", "dense", "text", "text", "text", i))
                found.append(Site(f"image.{i}", "dense", "image", "image", "image", i))
                if i < 2:
                    found.append(Site(f"to_text.{i}", "dense", "text", "image", "cross", i))
                    found.append(Site(f"to_image.{i}", "dense", "image", "text", "cross", i))
            return found

    torch.manual_seed(4)
    return TwoStreams()


def hat(R):
    S = R - torch.eye(len(R), dtype=R.dtype)
    return S / S.sum(1, keepdim=True) + torch.eye(len(R), dtype=R.dtype)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("self_in_cross", [True, False])
def test_rules(two_streams, normalise, self_in_cross):
    tokens = torch.randn(2, TEXT + IMAGE, 16, dtype=torch.float64)
    classes = torch.tensor([[0, 3], [1, 2]])
    with record(two_streams, gradients=True) as recording:
        targets = class_targets(two_streams(tokens), classes, stream="text")
    got = GenericRelevance(normalise=normalise, self_in_cross=self_in_cross)(recording, targets)
    N = hat if normalise else lambda R: R
    logits = two_streams.by("kept")(tokens)
    modules = [site.module for site in two_streams.sites()]
    kept = [two_streams.get_submodule(module).kept for module in modules]
    for target in range(4):
        sample, label = target // 2, classes.flatten()[target]
        gradients = torch.autograd.grad(logits[sample, label], kept, retain_graph=True, allow_unused=True)
        m = {
            module: (A * (torch.zeros_like(A) if G is None else G))[sample].clamp(min=0).mean(0).detach()
            for module, A, G in zip(modules, kept, gradients, strict=True)
        }
        R_tt, R_ii = torch.eye(TEXT, dtype=torch.float64), torch.eye(IMAGE, dtype=torch.float64)
        R_ti, R_it = R_tt.new_zeros(TEXT, IMAGE), R_tt.new_zeros(IMAGE, TEXT)
        for i in range(3):
            R_tt, R_ti = R_tt + m[f"text.{i}"] @ R_tt, R_ti + m[f"text.{i}"] @ R_ti
            R_ii, R_it = R_ii + m[f"image.{i}"] @ R_ii, R_it + m[f"image.{i}"] @ R_it
            if i < 2:
                m_ti, m_it = m[f"to_text.{i}"], m[f"to_image.{i}"]
                d_ti = N(R_tt).T @ m_ti @ N(R_ii) if self_in_cross else m_ti
                d_it = N(R_ii).T @ m_it @ N(R_tt) if self_in_cross else m_it
                d_tt, d_ii = m_ti @ R_it, m_it @ R_ti
                R_ti, R_it = R_ti + d_ti.nan_to_num(nan=0.0), R_it + d_it.nan_to_num(nan=0.0)
                R_tt, R_ii = R_tt + d_tt, R_ii + d_ii
        torch.testing.assert_close(got["text"][target], R_tt[0])
        torch.testing.assert_close(got["image"][target], R_ti[0])
    assert (got["image"] > 0).any()


class PaddedText(nn.Module):
    """Text that reads an image, which reads the text where `mutual`."""

    def __init__(self, mutual: bool):
        super().__init__()
        torch.manual_seed(0)
        self.mutual = mutual
        self.text, self.image, self.across, self.back = (
            nn.ModuleList(nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2)) for _ in range(4)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, image, text, padding):
        for layer in range(2):
            text = text + self.text[layer](text, text, text, key_padding_mask=padding)[0]
            image = image + self.image[layer](image, image, image)[0]
            written = text + self.across[layer](text, image, image)[0]
            if self.mutual:
                image = image + self.back[layer](image, text, text, key_padding_mask=padding)[0]
            text = written
        return self.head(text[:, 0])

    def sites(self):
        names = (("text", "text", "text"), ("image", "image", "image"), ("across", "text", "image"))
        names += (("back", "image", "text"),) if self.mutual else ()
        return [
            Site(f"{name}.{layer}", "dense", writes, reads, f"{name if writes == reads else 'cross'}", layer)
            for layer in range(2)
            for name, writes, reads in names
        ]

    def streams(self, outputs):
        return {
            "image": Stream("image", Patches((2, 3), 0)),
            "text": Stream("text", Words((("a",) * 5,) * len(outputs))),
        }


@pytest.mark.parametrize("mutual", [False, True])
def test_padded_text_changes_nothing(mutual):
    net = PaddedText(mutual).double().eval()
    generator = torch.Generator().manual_seed(1)
    image, text = (torch.randn(2, n, 16, generator=generator, dtype=torch.float64) for n in (6, 5))
    padding = torch.arange(5).expand(2, -1) >= torch.tensor([[3], [5]])

    def target(logits):
        return class_targets(logits[:1], 1, stream="text")

    alone = explain(net, (image[:1], text[:1, :3], padding[:1, :3]), target, GenericRelevance()).relevance
    together = explain(net, (image, text, padding), target, GenericRelevance()).relevance
    assert alone["image"].abs().max() > 0
    torch.testing.assert_close(together["image"], alone["image"])
    torch.testing.assert_close(together["text"][:, :3], alone["text"])
