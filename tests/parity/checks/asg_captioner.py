"""The captioner of abstract scene graphs: encoder, every quantity of every step, loss, gradients, greedy and beam."""

import tempfile
from pathlib import Path

import torch
from reference_arrays import tolerate, tolerate_stated
from torch import Tensor

from checks import check
from lightning_xai.nets.asg_captioner import ASGCaptioner
from lightning_xai.nets.asg_captioner_checkpoints import load_captioner_checkpoint
from lightning_xai.nets.asg_decoder import rows_of
from lightning_xai.nets.asg_encoder import attribute_orders, in_their_roles
from lightning_xai.nets.beam_search import Beams
from lightning_xai.tasks.caption_loss import caption_loss

# A case's names for constructor arguments that it may leave at the published value.
ARGUMENTS = {
    "mtype": "model_type",
    "vocab": "vocabulary",
    "dim_ft": "feature_dim",
    "dim_mp": "global_dim",
    "hid": "hidden_dim",
    "layers": "num_layers",
    "embed_first": "embed_first",
    "attn_type": "attention",
    "tie": "tied",
    "h2w": "hidden2word",
    "num_rels": "num_relations",
    "num_node_types": "num_node_types",
}
STEPS = {  # a case's names for what `forward` says, where they differ
    "encoder_nodes": "nodes",
    "global_embedding": "summary",
}


def build(case) -> ASGCaptioner:
    """The network of the case's checkpoint, read from a file in the original's layout."""
    config = case.config
    arguments = {ours: config[theirs] for theirs, ours in ARGUMENTS.items() if theirs in config}
    net = ASGCaptioner(**arguments, separate_values=not config.get("memory_same", True))
    checkpoint: dict[str, dict[str, Tensor]] = {}
    for key, values in case.state_dict().items():
        part, name = key.split("/")
        checkpoint.setdefault(part, {})[name] = values
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "epoch.1.th"
        torch.save(checkpoint, file)
        load_captioner_checkpoint(net, file)
    return net.eval()


@check("sa3/asg")
def asg(case):
    tolerate_stated(case)
    net = build(case)
    captions, mask = case.inputs["caption_ids"], case.inputs["caption_masks"]
    graph = {name: values for name, values in case.inputs.items() if not name.startswith("caption_")}
    graph["attn_masks"] = graph["attn_masks"].bool()

    layers: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: layers.append(output))
        for layer in getattr(net.attn_encoder, "layers", [])
    ]
    said = net(graph, captions, details=True)
    for hook in hooks:
        hook.remove()
    everything = rows_of(graph["attn_masks"], padded=True)
    found = said | {f"rgcn_layer{i}": everything.padded(output) for i, output in enumerate(layers)}
    found |= {theirs: said[ours] for theirs, ours in STEPS.items()}
    if "node_types" in net.needs:
        found["role_embedding_product"] = everything.padded(in_their_roles(net.attn_encoder, graph, everything))
    if "memory_before_write" in said:
        found["memory_before_write_node0"] = said["memory_before_write"][:, :, 0]
    found["loss"] = caption_loss(said["logits"], captions, mask)
    found["loss_per_sample"] = caption_loss(said["logits"], captions, mask, per_sample=True)

    named = {name.replace(".", "/", 1): parameter for name, parameter in net.named_parameters()}
    names = case.info["strings"]["param_names"]
    if sorted(named) != sorted(names):
        case.failures.append(f"parameters are {sorted(named)}, expected {sorted(names)}")
    lean = caption_loss(net(graph, captions)["logits"], captions, mask)  # padded nodes left out, as in training
    for loss in (found["loss"], lean):
        gradients = torch.autograd.grad(loss, [named[name] for name in names])
        case.compare("param_grad_norm", torch.stack([gradient.double().norm() for gradient in gradients]))

    words = case.config["max_words"]
    greedy = net.greedy(graph, words, run_on=True)
    found |= {"greedy_ids": greedy["words"], "greedy_logprobs": greedy["logprobs"]}
    found["greedy_content_attention"] = greedy["content_attention"]
    for name in set(found) & set(case.outputs):
        case.compare(name, found[name])

    sizes = {"width": case.config.get("beam", 3), "pool": case.config.get("pool", 3), "max_words": words}
    for prefix, reorder_all in (("beam", False), ("beam_fixed", True)):
        if f"{prefix}_ids" in case.outputs:
            compare_beams(case, prefix, net.beam(graph, **sizes, reorder_all=reorder_all))


def compare_beams(case, prefix: str, beams: Beams) -> None:
    """Sentences of a case may be stored with fewer or more words than ours have room for."""
    length = case.outputs[f"{prefix}_ids"].shape[2]
    if (beams.words[:, :, length:] != -1).any():
        case.failures.append(f"{prefix}_ids: a sentence is longer than {length} words")
    missing = max(0, length - beams.words.shape[2])
    for name, values, absent in (("ids", beams.words, -1), ("word_logprobs", beams.logprobs, 0.0)):
        ours = torch.nn.functional.pad(values, (0, missing), value=absent)[:, :, :length]
        case.compare(f"{prefix}_{name}", ours)
    case.compare(f"{prefix}_score", beams.scores.masked_fill(beams.scores.isinf(), -1e9))  # a case's way to say absent
    case.compare(f"{prefix}_count", beams.counts)


@check("sa3/asg_order_embeds")
def asg_order_embeds(case):
    stated = case.info["tolerance"]
    tolerate(case, lambda name: (stated["abs"], stated["rel"]))
    for channels in case.config["dims"]:
        case.compare(f"table_{channels}", attribute_orders(case.config["rows"], channels))


@check("sa3/asg_caption_loss")
def asg_caption_loss(case):
    tolerate_stated(case)
    captions = case.inputs["caption_ids"]
    logits = case.inputs["logits"].unflatten(0, (len(captions), -1))
    for suffix, masks in (("", "caption_masks"), ("_weighted", "weighted_masks")):
        mask = case.inputs[masks]
        case.compare(f"loss{suffix}", caption_loss(logits, captions, mask))
        case.compare(f"loss{suffix}_per_sample", caption_loss(logits, captions, mask, per_sample=True))
