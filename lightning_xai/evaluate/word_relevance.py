"""Which nodes of a graph made a captioner say a word: what its gradient says, and what leaving a node out does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_xai.explain.evaluation_mode import evaluation_mode
from lightning_xai.explain.explain_batch import outside_inference

FEATURES = "attn_fts"
Graph = Mapping[str, Tensor]
Say = Callable[[Graph], Tensor]


def word_logprobs(net: nn.Module, graph: Graph, captions: Tensor) -> Tensor:
    """(B, T - 1): the log-probability of each word of captions (B, T) behind the first, given those before it."""
    logits = net(graph, captions)["logits"].float()
    return logits.log_softmax(2).gather(2, captions[:, 1:, None])[..., 0]


def gradient_x_input(say: Say, graph: Graph) -> Tensor:
    """(B, T, N): `sum_c x_nc dy_t / dx_nc` for the feature x of node n and the log-probability y of word t.

    The sum is signed: a node speaks for a word or against it. say: from a graph to (B, T); samples may not see each
    other. One backward pass a word. Source: Shrikumar et al. 2016, arXiv 1605.01713.
    """
    features = graph[FEATURES].detach().clone().requires_grad_()
    with torch.enable_grad():
        totals = say({**graph, FEATURES: features}).sum(0).unbind()
    found = []
    for word, total in enumerate(totals, 1):
        (gradient,) = torch.autograd.grad(total, features, retain_graph=word < len(totals))
        found.append((gradient * features.detach()).sum(2))
    return torch.stack(found, 1)


def occlusion(say: Say, graph: Graph) -> Tensor:
    """(B, T, N): by how much the log-probability of word t drops when the feature of node n is zero.

    One forward pass a node, of the whole batch. Source: Zeiler and Fergus 2014, arXiv 1311.2901.
    """
    features, drops = graph[FEATURES], []
    with torch.no_grad():
        whole = say(graph)
        for node in range(features.shape[1]):
            without = features.clone()
            without[:, node] = 0
            drops.append(whole - say({**graph, FEATURES: without}))
    return torch.stack(drops, 2)


METHODS: dict[str, Callable[[Say, Graph], Tensor]] = {"gradient_x_input": gradient_x_input, "occlusion": occlusion}


def word_relevance(
    net: nn.Module, graph: Graph, captions: Tensor, methods: Sequence[str] = tuple(METHODS)
) -> dict[str, Tensor]:
    """What methods of METHODS say of each word of captions (B, T) behind the first: (B, T - 1, N) by method.

    The network is in eval mode and without autocast meanwhile; no gradient stays, and no random state changes. Works
    under no_grad and inference_mode.
    """
    with torch.inference_mode(False), evaluation_mode(net), torch.autocast(captions.device.type, enabled=False):
        graph, captions = outside_inference(dict(graph)), outside_inference(captions)

        def say(changed: Graph) -> Tensor:
            return word_logprobs(net, changed, captions)

        return {method: METHODS[method](say, graph) for method in methods}
