"""Reads checkpoints of captioners of abstract scene graphs: the published repository's and this project's."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lightning_xai.nets.asg_captioner import ASGCaptioner
from lightning_xai.nets.vit_checkpoints import some_of
from lightning_xai.nets.weight_files import read_weight_file

PARTS = ("mp_encoder", "attn_encoder", "decoder")
ORDERS = "attn_encoder.attr_order_embeds"  # a formula's values, which a file need not hold


def load_captioner_checkpoint(net: ASGCaptioner, path: str | Path) -> list[str] | None:
    """Load a checkpoint file into a captioner; returns the words that it was trained with, where the file says so.

    Raises FileNotFoundError or ValueError: no file, missing or unexpected keys (all named), other shapes. The network
    is unchanged when it raises.
    """
    content = read_weight_file(path)
    weights, own = _weights(content, path), net.state_dict()
    if ORDERS in own:
        weights.setdefault(ORDERS, own[ORDERS])
    problems = {"missing": [k for k in own if k not in weights], "unexpected": [k for k in weights if k not in own]}
    wrong = [k for k in own if k in weights and weights[k].shape != own[k].shape]
    shapes = [f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}" for k in wrong]
    problems["of other shapes"] = shapes
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {some_of(keys)}" for kind, keys in problems.items() if keys)
        built = ", ".join(f"{name}={value!r}" for name, value in captioner_arguments(weights).items())
        raise ValueError(f"checkpoint '{path}' does not fit the captioner ({listed}): build it with {built}")
    net.load_state_dict(weights)
    return content.get("words") if isinstance(content, Mapping) else None


def build_captioner(path: str | Path, dropout: float = 0.5) -> ASGCaptioner:
    """The captioner that a checkpoint file holds, its type and sizes read off the weights."""
    net = ASGCaptioner(**captioner_arguments(read_captioner(path)), dropout=dropout)
    load_captioner_checkpoint(net, path)
    return net


def read_captioner(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file by the names of `ASGCaptioner`: {part: {name: tensor}}, or `state_dict` of a task."""
    return _weights(read_weight_file(path), path)


def _weights(content: object, path: str | Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    if isinstance(content, Mapping) and all(isinstance(content.get(part), Mapping) for part in PARTS):
        weights = {f"{part}.{name}": tensor for part in PARTS for name, tensor in content[part].items()}
    elif isinstance(content, Mapping):
        inner = content.get("state_dict", content)
        if isinstance(inner, Mapping):
            weights = {str(name).removeprefix("net."): tensor for name, tensor in inner.items()}
    parts = {name.split(".")[0] for name in weights}
    if not parts.issuperset(PARTS) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(
            f"'{path}' is no checkpoint of a captioner: expected weights of {', '.join(PARTS)}, each under its name"
        )
    return weights


def captioner_arguments(weights: Mapping[str, Tensor]) -> dict:
    """The arguments of `ASGCaptioner` that a checkpoint's names and shapes tell. Raises ValueError: they do not."""

    def size(name: str, axis: int) -> int:
        if name not in weights:
            raise ValueError(f"the weights are of no captioner of scene graphs: there is no {name}")
        return weights[name].shape[axis]

    relational = "attn_encoder.layers.0.weight" in weights
    roles = "attn_encoder.node_embedding.weight" in weights
    flow, memory = (f"decoder.{name}.0.weight" in weights for name in ("address_layer", "memory_update_layer"))
    if relational:
        model_type = "rgcn" + ".flow" * flow + ".memory" * memory
    else:
        model_type = "node.role" if roles else "node"
    hidden = size("mp_encoder.ft_embed.weight", 0)
    arguments = {
        "model_type": model_type,
        "vocabulary": size("decoder.embedding.we.weight", 0),
        "global_dim": size("mp_encoder.ft_embed.weight", 1) - hidden,
        "hidden_dim": hidden,
        "word_dim": size("decoder.embedding.we.weight", 1),
        "separate_values": "decoder.memory_value_layer.weight" in weights,
        "tied": "decoder.fc.weight" not in weights,
        "hidden2word": "decoder.hidden2word.weight" in weights,
    }
    kinds = {"mlp": "decoder.attn.linear_query.weight", "general": "decoder.attn.linear_in.weight"}
    arguments["attention"] = next((kind for kind, name in kinds.items() if name in weights), "dot")
    if relational:
        arguments["num_layers"] = sum(name.endswith(".loop_weight") for name in weights)
        arguments["embed_first"] = "attn_encoder.first_embedding.0.weight" in weights
        arguments["num_relations"] = size("attn_encoder.layers.0.weight", 0)
    first = "attn_encoder.node_embedding.weight" if roles else "attn_encoder.ft_embed.weight"
    arguments["feature_dim"] = size(first, 1)
    if roles:
        arguments["num_node_types"] = size("attn_encoder.node_embedding.weight", 0)
    return arguments
