"""Checkpoints of captioners: every layout gives the same weights, and what does not fit is named."""

import pytest
import torch

from lightning_xai.nets.asg_captioner import MODEL_TYPES, ASGCaptioner
from lightning_xai.nets.asg_captioner_checkpoints import build_captioner, load_captioner_checkpoint

SMALL = {"vocabulary": 12, "feature_dim": 6, "global_dim": 5, "hidden_dim": 8}


def published(net, orders=True):
    """{part: {name: tensor}}, as the original repository saves."""
    parts = {"mp_encoder": {}, "attn_encoder": {}, "decoder": {}}
    for name, values in net.state_dict().items():
        part, rest = name.split(".", 1)
        if orders or rest != "attr_order_embeds":
            parts[part][rest] = values
    return parts


LAYOUTS = {
    "published": published,
    "without the table of orders": lambda net: published(net, orders=False),
    "task": lambda net: {"state_dict": {f"net.{name}": v for name, v in net.state_dict().items()}, "epoch": 3},
    "bare": lambda net: net.state_dict(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    trained, fresh = ASGCaptioner(**SMALL), ASGCaptioner(**SMALL)
    torch.save(LAYOUTS[layout](trained), tmp_path / "epoch.7.th")
    load_captioner_checkpoint(fresh, tmp_path / "epoch.7.th")
    for name, values in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], values), name


@pytest.mark.parametrize(
    "changes",
    [{"model_type": name} for name in MODEL_TYPES]
    + [{"embed_first": False, "num_layers": 3}, {"attention": "general", "separate_values": True, "tied": False}]
    + [{"attention": "dot", "hidden2word": True, "word_dim": 4}],
    ids=str,
)
def test_type_and_sizes_are_read_off_the_weights(changes, tmp_path):
    trained = ASGCaptioner(**{**SMALL, **changes})
    torch.save(published(trained), tmp_path / "file.th")
    built = build_captioner(tmp_path / "file.th")
    assert built.model_type == trained.model_type
    ours, theirs = built.state_dict(), trained.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_names_are_the_published_ones():
    names = set(published(ASGCaptioner(**SMALL))["decoder"])
    assert {"embedding.we.weight", "attn_lstm.weight_ih", "attn.linear_query.bias", "attn.attn_w.weight"} <= names
    assert {"attn_linear_context.weight", "address_layer.2.bias", "memory_update_layer.0.weight"} <= names
    assert "sentinal_layer.2.weight" in names  # so spelt


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "rgcn.flow"}, r"missing: decoder.memory_update_layer.*build it with model_type='rgcn.flow'"),
        ({"model_type": "node"}, r"unexpected: attn_encoder.ft_embed.*model_type='node'"),
        ({"vocabulary": 13}, r"of other shapes: decoder.embedding.we.weight \(13, 8\) instead of .*vocabulary=13"),
        ({"num_layers": 3}, r"unexpected: attn_encoder.layers.2.*num_layers=3"),
    ],
)
def test_checkpoint_of_another_captioner(changes, message, tmp_path):
    net = ASGCaptioner(**SMALL)
    before = {name: values.clone() for name, values in net.state_dict().items()}
    torch.save(published(ASGCaptioner(**{**SMALL, **changes})), tmp_path / "file.th")
    with pytest.raises(ValueError, match=message):
        load_captioner_checkpoint(net, tmp_path / "file.th")
    assert all(torch.equal(values, before[name]) for name, values in net.state_dict().items())


@pytest.mark.parametrize("content", [{"model": {"a": torch.zeros(1)}}, [1, 2], {"decoder": {"a": torch.zeros(1)}}])
def test_file_of_something_else(content, tmp_path):
    torch.save(content, tmp_path / "file.th")
    with pytest.raises(ValueError, match="no checkpoint of a captioner: expected weights of mp_encoder"):
        load_captioner_checkpoint(ASGCaptioner(**SMALL), tmp_path / "file.th")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.th"):
        build_captioner(tmp_path / "missing.th")


def test_parts_without_their_weights(tmp_path):
    torch.save({part: {"a": torch.zeros(1)} for part in ("mp_encoder", "attn_encoder", "decoder")}, tmp_path / "f.th")
    with pytest.raises(ValueError, match=r"there is no mp_encoder\.ft_embed\.weight"):
        build_captioner(tmp_path / "f.th")
