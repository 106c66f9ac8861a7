"""The LRP methods on a small vision transformer, against relevance propagated by hand, layer for layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_xai.explain.attn_lrp import AttnLRP
from lightning_xai.explain.generic_relevance_lrp import GenericRelevanceLRP
from lightning_xai.explain.input_relevance import FullLRP
from lightning_xai.explain.partial_lrp import PartialLRP
from lightning_xai.explain.pixel_maps import on_grid
from lightning_xai.explain.recording import record
from lightning_xai.explain.site_relevance import reduced_relevances, ruled_recording
from lightning_xai.explain.streams import Patches, Site, Stream, Words
from lightning_xai.explain.targets import class_targets, detection_targets
from lightning_xai.explain.transformer_attribution import TransformerAttribution
from lightning_xai.nets.deformable_detr import DeformableDETR
from lightning_xai.nets.detr import DETR

WIDTH, HEADS, DEPTH, CLASSES = 12, 3, 3, 4


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SmallViT(nn.Module):
    """Images (B, 3, 8, 12) in six patches of 4 x 4 and a class token."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, 7, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])

    def sites(self):
        return [Site(f"blocks.{i}.attn", "dense", "image", "image", "encoder", i) for i in range(DEPTH)]

    def streams(self, outputs):
        return {"image": Stream("image", Patches((2, 3), 1))}


def divide(a, b):
    """The quotient of the method's authors, element by element."""
    return torch.where(b == 0, torch.zeros_like(a), a / (b + 1e-9))


def linear_back(layer, x, r, plain):
    wp, wn = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
    xp, xn = x.clamp(min=0), x.clamp(max=0)
    zp, zn = xp @ wp.T, xn @ wn.T
    if plain:
        return xp * (divide(r, zp) @ wp) + xn * (divide(r, zn) @ wn)
    s = divide(r, zp + zn)
    return xp * (s @ wp) + xn * (s @ wn)


def sum_back(a, b, r, plain):
    ra, rb = a * divide(r, a + b), b * divide(r, a + b)
    if plain:
        return ra, rb
    sa, sb = ra.sum(), rb.sum()
    share = r.sum() / (sa.abs() + sb.abs())
    return ra * (sa.abs() * share / sa), rb * (sb.abs() * share / sb)


def product_back(a, b, r):
    s = divide(r, a @ b)
    return a * (s @ b.transpose(-2, -1)) / 2, b * (a.transpose(-2, -1) @ s) / 2


@torch.no_grad()
def by_hand(net, image, index, plain):
    """Relevance (DEPTH, H, N, N) at the attention of one image (1, 3, 8, 12), and of its pixels (8, 12)."""
    patches = net.patches(image).flatten(2).transpose(1, 2)
    embedded = torch.cat([net.cls, patches], 1)
    x, kept = embedded + net.position, []
    for block in net.blocks:
        n1 = block.norm1(x)
        q, k, v = block.attn.qkv(n1).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q = q * q.shape[-1] ** -0.5
        a = (q @ k.transpose(-2, -1)).softmax(-1)
        mixed = (a @ v).transpose(1, 2).flatten(2)
        attended = block.attn.proj(mixed)
        middle = x + attended
        n2 = block.norm2(middle)
        hidden = F.gelu(block.mlp[0](n2))
        fed = block.mlp[2](hidden)
        kept.append((x, n1, q, k, v, a, mixed, attended, middle, n2, hidden, fed))
        x = middle + fed
    r = torch.zeros(1, CLASSES, dtype=x.dtype)
    r[0, index] = 1
    top = torch.zeros_like(x)
    top[:, 0] = linear_back(net.head, net.norm(x)[:, 0], r, plain)
    r, maps = top, []
    for block, (x, n1, q, k, v, a, mixed, attended, middle, n2, hidden, fed) in zip(
        reversed(net.blocks), reversed(kept), strict=True
    ):
        skip, branch = sum_back(middle, fed, r, plain)
        branch = linear_back(block.mlp[0], n2, linear_back(block.mlp[2], hidden, branch, plain), plain)
        skip, branch = sum_back(x, attended, skip + branch, plain)
        branch = linear_back(block.attn.proj, mixed, branch, plain).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        ra, rv = product_back(a, v, branch)
        maps.insert(0, ra[0])
        rq, rk = product_back(q, k.transpose(-2, -1), ra)
        packed = torch.stack([rq, rk.transpose(-2, -1), rv]).permute(1, 3, 0, 2, 4).flatten(2)
        r = skip + linear_back(block.attn.qkv, n1, packed, plain)
    r = sum_back(embedded, net.position.expand_as(embedded), r, plain)[0][0, 1:]
    weight = net.patches.weight.flatten(1)
    low, high = image.min(), image.max()
    pixels = F.unfold(image, 4, stride=4)[0].T
    wp, wn = weight.clamp(min=0), weight.clamp(max=0)
    s = r / (pixels @ weight.T - low * wp.sum(1) - high * wn.sum(1) + 1e-9)
    found = pixels * (s @ weight) - low * (s @ wp) - high * (s @ wn)
    return torch.stack(maps), F.fold(found.T[None], (8, 12), 4, stride=4)[0].sum(0)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    return SmallViT().double().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("rules", ["chefer", "plain"])
def test_relevance_at_attention_is_that_by_hand(net, images, rules):
    with ruled_recording(net, rules) as recording:
        targets = class_targets(net(images), torch.tensor([[1, 2], [0, 3]]))
    found = reduced_relevances(recording, targets, lambda record, relevance: relevance)
    for t, (sample, index) in enumerate([(0, 1), (0, 2), (1, 0), (1, 3)]):
        expected, _ = by_hand(net, images[sample : sample + 1], index, rules == "plain")
        for layer in range(DEPTH):
            close(found[f"blocks.{layer}.attn"][t], expected[layer])


@pytest.mark.parametrize("rules", ["chefer", "plain"])
def test_full_lrp_is_that_by_hand(net, images, rules):
    method = FullLRP(rules=rules)
    with method.recorded(net) as recording:
        targets = class_targets(net(images), torch.tensor([1, 3]))
    pixels = method.pixels(recording, targets)
    for sample, index in enumerate([1, 3]):
        _, expected = by_hand(net, images[sample : sample + 1], index, rules == "plain")
        close(pixels[sample], expected)
    tokens = method(recording, targets)["image"]
    assert (tokens[:, 0] == 0).all()
    close(tokens[:, 1:], pixels.unflatten(1, (2, 4)).unflatten(3, (3, 4)).sum((2, 4)).flatten(1))


def attention_and_gradients(net, image, index):
    with record(net, gradients=True) as recording:
        targets = class_targets(net(image), index)
    gradients = recording.reduced_gradients(targets, lambda record, gradient: gradient)
    return [gradients[f"blocks.{layer}.attn"][0] for layer in range(DEPTH)]


@pytest.mark.parametrize("start", [0, 1, -1])
@pytest.mark.parametrize("gradient", [True, False])
def test_transformer_attribution_is_the_product_of_matrices(net, images, start, gradient):
    method = TransformerAttribution(start_layer=start, gradient=gradient)
    with method.recorded(net) as recording:
        targets = class_targets(net(images), torch.tensor([1, 2]))
    got = method(recording, targets)["image"]
    for sample, index in enumerate([1, 2]):
        image = images[sample : sample + 1]
        relevance, _ = by_hand(net, image, index, plain=False)
        factors = attention_and_gradients(net, image, index) if gradient else torch.ones_like(relevance)
        product = torch.eye(7, dtype=torch.float64)
        for layer in range(start % DEPTH, DEPTH):
            mean = (factors[layer] * relevance[layer]).clamp(min=0).mean(0)
            product = (mean + torch.eye(7, dtype=torch.float64)) @ product
        close(got[sample], product[0])


def test_partial_lrp_variants(net, images):
    relevance, _ = by_hand(net, images[:1], 2, plain=True)
    slope = attention_and_gradients(net, images[:1], 2)
    mean = relevance[-1].mean(0)
    expected = {
        PartialLRP(): relevance[-1].clamp(min=0).mean(0)[0],
        PartialLRP(layer=1): relevance[1].clamp(min=0).mean(0)[0],
        PartialLRP(layer=1, gradient=True): (slope[1] * relevance[1]).clamp(min=0).mean(0)[0],
        PartialLRP(positive=False): mean[0],
        PartialLRP(positive=False, scaled=True): ((mean - mean.min()) / (mean.max() - mean.min()))[0],
    }
    for method, row in expected.items():
        with method.recorded(net) as recording:
            targets = class_targets(net(images[:1]), 2)
        close(method(recording, targets)["image"][0], row)


def test_relevance_of_a_sample_does_not_depend_on_the_batch(net, images):
    for method in (TransformerAttribution("chefer_conserving"), PartialLRP(), FullLRP(), AttnLRP()):
        rows = []
        for batch in (images, images[1:]):
            with method.recorded(net) as recording:
                targets = class_targets(net(batch), 1)
            rows.append(method(recording, targets)["image"][-1])
        close(rows[0], rows[1])


def test_attn_lrp_finds_the_planted_patch():
    """Only the third patch is bright and its brightness is the class: it takes the relevance, which is the score."""
    torch.manual_seed(0)
    net = SmallViT().double().eval()
    with torch.no_grad():
        net.patches.weight.fill_(0.01)
        net.patches.bias.zero_()
        net.position.zero_()
    image = torch.zeros(1, 3, 8, 12, dtype=torch.float64)
    image[..., :4, 8:] = 1.0
    method = AttnLRP()
    with method.recorded(net) as recording:
        targets = class_targets(net(image), 0)
    row = method(recording, targets)["image"][0]
    assert (row[[0, 1, 2, 4, 5, 6]] == 0).all() and row[3] != 0


def test_sums_over_a_grid_keep_the_total():
    pixels = torch.rand(2, 7, 10, dtype=torch.float64)
    cells = on_grid(pixels, (3, 4))
    assert cells.shape == (2, 12)
    torch.testing.assert_close(cells.sum(1), pixels.sum((1, 2)))


def test_unknown_rules_are_named(net):
    message = "no relevance rules 'lrp0'; there are chefer, chefer_conserving, plain, attn_lrp"
    with pytest.raises(ValueError, match=message), TransformerAttribution(rules="lrp0").recorded(net):
        pass


def test_a_plain_recording_has_no_relevance(net, images):
    with record(net, gradients=True) as recording:
        targets = class_targets(net(images))
    with pytest.raises(RuntimeError, match="relevance_rules"):
        TransformerAttribution()(recording, targets)


@pytest.fixture(scope="module", params=[DETR, DeformableDETR])
def detector(request):
    torch.manual_seed(0)
    sizes = {"hidden_dim": 32, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 2, "dim_feedforward": 16}
    net = request.param(num_classes=3, backbone="resnet18", num_queries=5, **sizes).double().eval()
    for name, parameter in net.named_parameters():
        if not name.startswith("backbone") and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return net


@pytest.mark.parametrize(
    "method",
    [
        TransformerAttribution("chefer_conserving"),
        PartialLRP(positive=False),
        GenericRelevanceLRP(zero_row="identity"),
        AttnLRP(),
    ],
)
def test_detectors_are_explained_sample_by_sample(detector, method):
    """Each sample of a batch has the relevance that it has alone, and the outputs are the network's own."""
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = []
    for batch in (images, images[1:]):
        with method.recorded(detector) as recording:
            outputs = detector(batch, torch.zeros(len(batch), 64, 96, dtype=torch.bool))
            last = torch.tensor([len(batch) - 1])
            targets = detection_targets(outputs["pred_logits"], last, torch.tensor([2]))
        rows.append(method(recording, targets)["image"][0])
        with torch.no_grad():
            plain = detector(batch, torch.zeros(len(batch), 64, 96, dtype=torch.bool))["pred_logits"]
        torch.testing.assert_close(outputs["pred_logits"], plain)
    assert rows[0].abs().max() > 0
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-4, atol=1e-5 * rows[1].abs().max().item())


def test_targets_that_share_a_pass_have_the_relevance_that_they_have_alone(detector):
    """Three detections of one image and two of the other: one pass for each turn, or one for each target."""
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[1, :, 40:] = True
    method = GenericRelevanceLRP(zero_row="identity")
    with method.recorded(detector) as recording:
        logits = detector(images, mask)["pred_logits"]
        samples, queries = torch.tensor([0, 1, 0, 0, 1]), torch.tensor([3, 1, 0, 4, 2])
        targets = detection_targets(logits, samples, queries)
        alone = [detection_targets(logits, samples[t : t + 1], queries[t : t + 1]) for t in range(5)]
    together = method(recording, targets)["image"]
    for t, one in enumerate(alone):
        row = method(recording, one)["image"][0]
        torch.testing.assert_close(together[t], row, rtol=1e-6, atol=1e-8 * row.abs().max().item())
    assert recording.ruled.separable


@pytest.mark.parametrize("count", [7, 5])
def test_as_many_samples_as_tokens(net, count):
    """With a batch as large as the sequence no rule can tell the samples apart, and each target is passed alone."""
    images = torch.randn(count, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    method = TransformerAttribution()
    with method.recorded(net) as recording:
        targets = class_targets(net(images), 1)
    got = method(recording, targets)["image"]
    assert recording.ruled.separable == (count != 7)
    with method.recorded(net) as recording:
        targets = class_targets(net(images[4:5]), 1)
    torch.testing.assert_close(got[4], method(recording, targets)["image"][0])


def test_padding_takes_no_relevance(detector):
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[..., 40:] = True
    images[..., 40:] = 0
    method = FullLRP()
    with method.recorded(detector) as recording:
        logits = detector(images, mask)["pred_logits"]
        targets = detection_targets(logits, torch.tensor([0, 0]), torch.tensor([2, 3]))
    pixels = method.pixels(recording, targets)
    assert pixels[..., 40:].abs().max() == 0 and (pixels[..., :40] != 0).float().mean() > 0.9


def test_words_have_the_relevance_of_their_embeddings():
    """A text whose class is the sum of its words' weights: each word has its own, from the score."""

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.site, self.head = nn.Embedding(6, 4), nn.Identity(), nn.Linear(4, 2, bias=False)
            self.site.forward = lambda x: torch.ones(len(x), 1, x.shape[1], x.shape[1]).softmax(-1).to(x) @ x[:, None]

        def forward(self, words):
            return self.head(self.site(self.words(words))[:, 0, 0])

        def sites(self):
            return [Site("site", "dense", "text", "text", "text", 0)]

        def streams(self, outputs):
            return {"text": Stream("text", Words((("a", "b", "c"),)))}

    torch.manual_seed(0)
    net, words, method = Bag().double(), torch.tensor([[1, 5, 3]]), AttnLRP()
    with method.recorded(net) as recording:
        targets = class_targets(net(words), 1, stream="text")
    expected = (net.words.weight[words[0]] @ net.head.weight[1]).detach() / 3
    found = method(recording, targets)["text"][0]
    torch.testing.assert_close(found / found.sum(), expected / expected.sum(), rtol=1e-4, atol=1e-7)
