"""Training a captioner on some of its own words, which it will have to go on from when nobody writes them for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.nets.asg_captioner import ASGCaptioner


@dataclass(frozen=True)
class ScheduledSampling:
    """The share of words that are drawn: `rate`, and `increase` more after each `every` epochs up to `max_rate`.

    The defaults are those of asg2cap, which leaves it off. Raises ValueError for what is no share, and every < 1.
    Source: Bengio et al., "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks" (2015).
    """

    rate: float = 0.05
    max_rate: float = 0.25
    increase: float = 0.05
    every: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= self.max_rate <= 1 or self.increase < 0 or self.every < 1:
            raise ValueError(
                f"{self}: 0 <= rate <= max_rate <= 1 are shares of words; increase is not below 0, every at least 1"
            )

    def at(self, epoch: int) -> float:
        """The share in epoch number `epoch`, from 0."""
        return min(self.max_rate, self.rate + self.increase * (epoch // self.every))


def sampled_logits(net: ASGCaptioner, graph: Mapping[str, Tensor], captions: Tensor, rate: float) -> Tensor:
    """`logits` (B, T - 1, V) of `ASGCaptioner.forward`, each word behind the first given to the network being, with
    probability `rate`, not the caption's but one drawn as the network finds it probable.

    No gradient goes through the draw. Draws are from torch's global generator. captions (B, T) stay as they are:
    asg2cap, whose method this is, overwrote the words that the loss compares with.
    """
    rows, nodes, summary = net.encode(graph)
    encoded, state = net.decoder.encoded(nodes, summary, rows, graph.get("flow_edges"))
    words, logits = captions[:, 0], []
    for place in range(captions.shape[1] - 1):
        if place:
            drawn = logits[-1].detach().float().softmax(1).multinomial(1)[:, 0]
            own = torch.rand(len(words), device=words.device) < rate
            words = torch.where(own, drawn, captions[:, place])
        step, state = net.decoder.step(net.decoder.word_gates(words, encoded), encoded, state)
        logits.append(net.decoder.logits(step["lang_lstm_h"], encoded))
    return torch.stack(logits, 1)
