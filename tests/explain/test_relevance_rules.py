"""Relevance by rules: what it sums to, what it is where it is known, and that gradients stay gradients."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_xai.explain.relevance_rules import relevance_pass, relevance_rules
from lightning_xai.explain.relevance_tables import ATTN_LRP, CHEFER, CHEFER_CONSERVING, PLAIN_LRP, TABLES

CONSERVING = {"chefer": CHEFER, "chefer_conserving": CHEFER_CONSERVING}


class Residual(nn.Module):
    """Convolutions of what is not negative, norms in evaluation mode, pooling, a residual sum, concatenation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
        self.norm = nn.LayerNorm(6)
        self.head = nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 3))

    def forward(self, images):
        x = self.stem(images)
        x = x + self.branch(x)
        x = F.avg_pool2d(x, 2).flatten(2).transpose(1, 2)
        x = self.norm(x * 0.5 + 1.0)
        return self.head(torch.cat([x[:, 0], x.mean(1)], -1))


class Attending(nn.Module):
    """Self-attention in one of the ways that networks write it, with residual sums and a gated feed-forward net."""

    def __init__(self, way: str, width=12, heads=3):
        super().__init__()
        self.way, self.heads = way, heads
        if way == "module":
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        else:
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.gate, self.down = nn.Linear(width, 20), nn.Linear(width, 20), nn.Linear(20, width)
        self.head = nn.Linear(width, 3)

    def attend(self, x):
        if self.way == "module":
            return self.attention(x, x, x, need_weights=False)[0]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.way == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v)
        elif self.way == "einsum":
            a = torch.einsum("bhqc,bhkc->bhqk", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
            mixed = torch.einsum("bhqk,bhkc->bhqc", a, v)
        else:
            mixed = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, -1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        hidden = self.norm2(x)
        x = x + self.down(self.up(hidden) * torch.sigmoid(1.702 * self.gate(hidden)))
        return self.head(x[:, 0])


def seeded(build, seed=0):
    torch.manual_seed(seed)
    return build().double().eval()


def relevance_of_input(net, x, table, index=1):
    with relevance_rules(net, table, down_to="inputs") as ruled:
        score = net(x)[0, index]
    with relevance_pass():
        return torch.autograd.grad(score, ruled.inputs[0])[0]


def images(seed=0):
    return torch.rand(2, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens(seed=0):
    return torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WAYS = ["module", "fused", "einsum", "explicit"]


@pytest.mark.parametrize("table", CONSERVING)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("network", ["residual", *WAYS])
def test_relevance_is_conserved(network, table, seed):
    """Nothing of the relevance 1 at the class is lost or made on the way to the input; none reaches other samples."""
    if network == "residual":
        net, x = seeded(Residual, seed), images(seed)
    else:
        net, x = seeded(lambda: Attending(network), seed), tokens(seed)
    relevance = relevance_of_input(net, x, CONSERVING[table])
    assert relevance[0].abs().max() > 1e-3
    torch.testing.assert_close(relevance.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-4)
    assert (relevance[1] == 0).all()


@pytest.mark.parametrize("network", ["residual", *WAYS])
@pytest.mark.parametrize("table", TABLES)
def test_outputs_and_gradients_are_the_networks_own(network, table):
    net, x = (seeded(Residual), images()) if network == "residual" else (seeded(lambda: Attending(network)), tokens())
    leaf = x.clone().requires_grad_()
    expected = net(leaf)
    (gradient,) = torch.autograd.grad(expected[:, 1].sum(), leaf)
    with relevance_rules(net, TABLES[table], down_to="inputs") as ruled:
        outputs = net(x)
    (got,) = torch.autograd.grad(outputs[:, 1].sum(), ruled.inputs[0])
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(got, gradient)


def test_functions_that_change_their_argument_count_as_if_they_did_not():
    class InPlace(nn.Module):
        def __init__(self, place):
            super().__init__()
            self.one, self.two, self.place = nn.Linear(12, 12), nn.Linear(12, 3), place

        def forward(self, x):
            hidden = self.one(x)
            if self.place:
                hidden += x
                hidden.mul_(0.5)
                F.relu(hidden, inplace=True)
                torch.relu_(hidden)
            else:
                hidden = torch.relu((hidden + x) * 0.5)
            return self.two(hidden).mean(1)

    plain = seeded(lambda: InPlace(False))
    changing = InPlace(True).double()
    changing.load_state_dict(plain.state_dict())
    with relevance_rules(changing, CHEFER, down_to="inputs"):
        torch.testing.assert_close(changing(tokens()), plain(tokens()))
    expected, got = (relevance_of_input(net, tokens(), CHEFER) for net in (plain, changing))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("way", WAYS[1:])
def test_ways_to_write_attention_have_the_same_relevance(way):
    torch.manual_seed(1)
    module = Attending("module").double().eval()
    other = Attending(way).double().eval()
    state = {
        k.replace("attention.in_proj_", "qkv.").replace("attention.out_proj", "out"): v
        for k, v in module.state_dict().items()
    }
    other.load_state_dict(state)
    expected, got = (relevance_of_input(net, tokens(), CHEFER) for net in (module, other))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


def test_positive_linear_rule_by_hand():
    """x = (1, -2), W = (3, -1; 2, 4): outputs excited by 3 + 2 and by 2; R = 1 at the first goes 3/5 and 2/5."""
    net = nn.Linear(2, 2).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[3.0, -1.0], [2.0, 4.0]]))
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    expected = torch.tensor([[0.6, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(relevance_of_input(net, x, CHEFER, 0), expected)
    torch.testing.assert_close(relevance_of_input(net, x, PLAIN_LRP, 0), torch.ones_like(x))
    torch.testing.assert_close(relevance_of_input(net, x, CHEFER, 1), torch.tensor([[1.0, 0.0]], dtype=torch.float64))


def test_epsilon_rules_of_a_linear_network_are_gradient_times_input():
    """For a network without biases and nonlinearities, R = f(x) gives x * df/dx, whatever its depth."""

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.Linear(12, 12, bias=False), nn.Linear(12, 3, bias=False)

        def forward(self, x):
            return self.head((x + self.mix(x)).mean(1))

    net, x = seeded(Bag), tokens()
    with relevance_rules(net, ATTN_LRP, down_to="inputs") as ruled:
        score = net(x)[0, 1]
    leaf = ruled.inputs[0]
    (gradient,) = torch.autograd.grad(score, leaf, retain_graph=True)
    with relevance_pass():
        (relevance,) = torch.autograd.grad(score, leaf, score.detach())
    torch.testing.assert_close(relevance, leaf.detach() * gradient, rtol=1e-5, atol=1e-7)


class Biased(nn.Module):
    """What adds a constant: biases, batch norm, positions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.position = nn.Parameter(torch.randn(8, 4, 4))
        self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, images):
        x = self.stem(images)
        x = torch.relu(x + self.position)
        return self.head(x.flatten(2).mean(-1))


@pytest.mark.parametrize("seed", range(3))
def test_epsilon_rules_with_biases_are_gradient_times_input(seed):
    """Ancona et al., ICLR 2018, proposition 1: the epsilon rule of a ReLU network is x df/dx, biases absorbing theirs.

    Relevance that a constant had not absorbed would be divided by activations near 0, and explode.
    """
    net = seeded(Biased, seed=seed)
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias), nn.init.normal_(norm.running_mean)
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with relevance_rules(net, ATTN_LRP, down_to="inputs") as ruled:
        score = net(images)[0, 1]
    leaf = ruled.inputs[0]
    with relevance_pass():
        (relevance,) = torch.autograd.grad(score, leaf, score.detach())
    asked = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(asked)[0, 1], asked)
    torch.testing.assert_close(relevance, images * gradient, rtol=1e-4, atol=1e-7)


def test_group_norm_is_linear_once_its_standard_deviation_is_given():
    norm = seeded(lambda: nn.GroupNorm(2, 4))
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    groups = x.view(2, 6)
    std = (groups.var(-1, unbiased=False) + norm.eps).sqrt()
    centring = torch.eye(6, dtype=torch.float64) - 1 / 6
    # relevance 1 starts at every output, in proportion to nothing but itself
    quotient = (1 / norm(x)).view(2, 2, 3) * norm.weight.detach().view(2, 2, 1)
    expected = groups * (quotient.view(2, 6) @ centring) / std[:, None]
    with relevance_rules(norm, ATTN_LRP, down_to="inputs") as ruled:
        output = norm(x)
    with relevance_pass():
        (relevance,) = torch.autograd.grad(output, ruled.inputs[0], torch.ones_like(output))
    torch.testing.assert_close(relevance, expected.view(1, 4, 3), rtol=1e-6, atol=1e-8)


def test_attention_lrp_softmax_and_norm():
    """R_x = x (R - p sum R) of a softmax; a layer norm is linear once its standard deviation is given."""

    class Softmax(nn.Module):
        def forward(self, x):
            return torch.softmax(x, -1)

    x = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    p = x.softmax(-1)
    expected = x * (torch.tensor([[1.0, 0.0, 0.0]]) - p)
    torch.testing.assert_close(relevance_of_input(Softmax(), x, ATTN_LRP, 0), expected)

    norm = seeded(lambda: nn.LayerNorm(3))
    std = (x.var(-1, unbiased=False) + norm.eps).sqrt()
    centring = torch.eye(3, dtype=torch.float64) - 1 / 3
    expected = x * centring[1] / std / norm(x)[0, 1]
    torch.testing.assert_close(relevance_of_input(norm, x, ATTN_LRP, 1), expected, rtol=1e-6, atol=1e-9)


def test_the_batch_does_not_matter():
    net, x = seeded(lambda: Attending("fused")), tokens()
    alone, together = relevance_of_input(net, x[:1], CHEFER_CONSERVING), relevance_of_input(net, x, CHEFER_CONSERVING)
    torch.testing.assert_close(together[:1], alone, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_nothing_stays_behind(around):
    net = seeded(lambda: Attending("module"))
    with around():
        x = tokens()
        before = net(x)
        flags = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_rng_state().tolist()
        relevance_of_input(net, x, CHEFER)
        assert flags == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_rng_state().tolist())
        assert torch.equal(net(x), before)
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert torch._C._len_torch_function_stack() == 0


def test_errors_say_what_is_missing():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.cumprod(x.flatten(1), 1)

    net = Odd()
    with pytest.raises(LookupError, match="cumprod"), relevance_rules(net, CHEFER, down_to="inputs"):
        net(tokens())
    with pytest.raises(ValueError, match='"sites" or to "inputs"'), relevance_rules(net, CHEFER, down_to="pixels"):
        pass
    leaf = tokens().requires_grad_()
    with pytest.raises(RuntimeError, match="no operation with a rule"), relevance_pass():
        torch.autograd.grad(leaf.sum(), leaf)


def test_deformable_attention_takes_halves():
    """Half of the relevance goes to the values and half to the weights; the locations take none."""
    from ms_deform_attn import ms_deform_attn

    class Sampling(nn.Module):
        def forward(self, value, weights):
            locations = torch.full((1, 2, 2, 1, 3, 2), 0.4, dtype=value.dtype)
            return ms_deform_attn(value, torch.tensor([[2, 3]]), locations, weights)

    generator = torch.Generator().manual_seed(0)
    value = torch.rand(1, 6, 2, 4, dtype=torch.float64, generator=generator)
    weights = torch.rand(1, 2, 2, 1, 3, dtype=torch.float64, generator=generator)
    net = Sampling()
    with relevance_rules(net, CHEFER, down_to="inputs") as ruled:
        score = net(value, weights)[0, 1, 5]
    with relevance_pass():
        shares = torch.autograd.grad(score, ruled.inputs)
    for share in shares:
        torch.testing.assert_close(share.sum(), torch.tensor(0.5, dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_graph_is_freed_with_its_last_reference():
    """No cycle keeps a recorded pass alive until the garbage collector runs."""
    net = seeded(lambda: Attending("module"))

    def passed():
        with relevance_rules(net, CHEFER, down_to="inputs") as ruled:
            score = net(tokens())[0, 1]
        with relevance_pass():
            torch.autograd.grad(score, ruled.inputs[0], retain_graph=True)
        return weakref.ref(ruled.inputs[0])

    gc.disable()
    try:
        assert passed()() is None
    finally:
        gc.enable()


def test_assignment_by_index_is_refused_rather_than_wrong():
    class Assigns(nn.Module):
        def forward(self, x):
            x = x + x
            x[:, 0] = x[:, 0] * 3
            return x

    net = Assigns()
    message = r"assignment by index \(Tensor.__setitem__\) has no relevance rule"
    with pytest.raises(LookupError, match=message), relevance_rules(net, CHEFER, down_to="inputs"):
        net(tokens())


def test_pixels_of_padding_cannot_have_another_value():
    """The rule for pixels shares all relevance of a window among its pixels, and gives padding nothing."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 2, 2, bias=False).double()

        def forward(self, images):
            return self.conv(images)

        def sites(self):
            return []

    torch.manual_seed(0)
    net, images = Windows(), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    padding = torch.zeros(2, 4, 6, dtype=torch.bool)
    padding[1, :, 4:] = True
    images[1, :, :, 4:] = 0
    with relevance_rules(net, PLAIN_LRP, "inputs") as forward:
        outputs = net(images)
    start = torch.rand_like(outputs)
    forward.padding = padding
    with relevance_pass():
        (found,) = torch.autograd.grad(outputs, forward.inputs[0], start)
    found, start = found.sum(1), start.sum(1)
    windows = found.unflatten(1, (2, 2)).unflatten(3, (3, 2)).sum((2, 4))
    start[1, :, 2] = 0
    torch.testing.assert_close(windows, start, rtol=1e-6, atol=1e-8)
    assert found[padding].abs().max() == 0


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("function", [F.log_softmax, torch.log_softmax, nn.LogSoftmax(-1)], ids=str)
def test_log_softmax(table, function):
    """What it takes from all scores alike, the normalisation, is taken as given."""

    class Scores(nn.Module):
        def forward(self, x):
            return function(x) if isinstance(function, nn.Module) else function(x, -1)

        def sites(self):
            return []

    net, x = Scores(), torch.randn(2, 4)
    with relevance_rules(net, table, "inputs") as forward:
        outputs = net(x)
    start = torch.rand(2, 4)
    with relevance_pass():
        (found,) = torch.autograd.grad(outputs, forward.inputs[0], start)
    # AttnLRP: the normalisation absorbs its share, as a bias does
    expected = x * start / x.log_softmax(-1) if table is ATTN_LRP else start
    torch.testing.assert_close(found, expected)
