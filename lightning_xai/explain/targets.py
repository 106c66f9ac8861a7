"""What is explained: scalar scores of a network's outputs, several of a sample at once."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Picked:
    """Where scores come from: scores = outputs[at], one of the network's output tensors, off its graph, by indices."""

    outputs: Tensor
    at: tuple[Tensor, ...]


@dataclass(frozen=True)
class Targets:
    """T scores, each of one sample.

    scores: (T,), on the graph of the recorded pass. samples: (T,) int64, whose score it is. rows: for each stream that
    is read out, which rows of the relevance answer: (T,) int64, one token (a class token, an object query, the end of a
    text), or (T, N) floats w, the sum of w_n times the row of token n (1 / N each where tokens are averaged).
    picked: which numbers of the outputs the scores are, for methods that run the network again on changed inputs.
    Raises ValueError for other shapes, or weights that are not finite.
    """

    scores: Tensor
    samples: Tensor
    rows: Mapping[str, Tensor]
    picked: Picked | None = None

    def __post_init__(self):
        count = len(self.scores)
        if self.scores.dim() != 1 or not count:
            raise ValueError(f"scores has shape {tuple(self.scores.shape)}, expected (T,) with at least one target")
        if self.samples.shape != (count,) or self.samples.dtype != torch.int64:
            raise ValueError(
                f"samples is {self.samples.dtype} of shape {tuple(self.samples.shape)}, expected int64 of shape "
                f"({count},), as many as scores"
            )
        for stream, rows in self.rows.items():
            tokens = rows.shape == (count,) and rows.dtype == torch.int64
            weights = rows.dim() == 2 and len(rows) == count and rows.is_floating_point()
            if not (tokens or weights):
                raise ValueError(
                    f"rows[{stream!r}] is {rows.dtype} of shape {tuple(rows.shape)}, expected a token of each target, "
                    f"int64 of shape ({count},), or weights of all tokens, floating-point of shape ({count}, N)"
                )
            if weights and not rows.isfinite().all():
                raise ValueError(f"rows[{stream!r}] holds weights that are NaN or infinite")
        if not self.rows:
            raise ValueError("rows is empty, expected the stream whose rows are read and a token for each target")

    def __len__(self) -> int:
        return len(self.scores)

    def turns(self) -> Tensor:
        """How many earlier targets have the same sample: (T,)."""
        same = self.samples[:, None] == self.samples
        return same.tril(-1).sum(1)


def class_targets(
    logits: Tensor,
    classes: Tensor | int | None = None,
    stream: str = "image",
    token: int = 0,
    rows: Mapping[str, Tensor] | None = None,
) -> Targets:
    """The logit of a class of each sample, read at the token that the logits are computed from.

    logits: (B, C). classes: one for all, (B,), or (B, M) for M targets a sample (in the order sample, target); by
    default the predicted class. rows: by stream, the token (B,) of each sample or its weights of all tokens (B, N), as
    a network's `readout` says it; by default `token` of `stream`. Raises ValueError for classes that do not exist or do
    not fit the samples.
    """
    if classes is None:
        classes = logits.detach().argmax(1)
    classes = torch.as_tensor(classes, device=logits.device)
    batch, count = logits.shape
    if classes.dim() == 0:
        classes = classes.expand(batch)
    if classes.dim() > 2 or len(classes) != batch or classes.is_floating_point():
        raise ValueError(
            f"classes is {classes.dtype} of shape {tuple(classes.shape)}, expected integers of shape ({batch},) or "
            f"({batch}, M) for {batch} samples"
        )
    _check_range("class", classes, count)
    classes = classes.reshape(batch, -1)
    samples = torch.arange(batch, device=logits.device)[:, None].expand_as(classes).flatten()
    if rows is None:
        read = {stream: torch.full_like(samples, token)}
    else:
        read = {name: each.to(samples.device)[samples] for name, each in rows.items()}
    return picked_targets(logits, (samples, classes.flatten()), samples, read)


def picked_targets(outputs: Tensor, at: tuple[Tensor, ...], samples: Tensor, rows: Mapping[str, Tensor]) -> Targets:
    """The scores outputs[at] of one of the network's output tensors, indices (T,) each."""
    return Targets(outputs[at], samples, rows, Picked(outputs.detach(), at))


def detection_targets(
    logits: Tensor,
    samples: Tensor,
    queries: Tensor,
    classes: Tensor | None = None,
    num_classes: int | None = None,
    stream: str = "query",
) -> Targets:
    """The logit of a class of chosen object queries, read at the query.

    logits: (B, Q, C). samples, queries, classes: (T,). num_classes: classes that a query may be predicted to be, the
    first of C, where the last means "no object"; by default all. Raises ValueError for what does not exist.
    """
    samples, queries = samples.to(logits.device), queries.to(logits.device)
    _check_range("sample", samples, logits.shape[0])
    _check_range("query", queries, logits.shape[1])
    if classes is None:
        classes = logits.detach()[samples, queries, :num_classes].argmax(-1)
    classes = classes.to(logits.device)
    _check_range("class", classes, logits.shape[2])
    return picked_targets(logits, (samples, queries, classes), samples, {stream: queries})


def pair_targets(logits_per_image: Tensor, text_tokens: Tensor, image_token: int = 0) -> Targets:
    """The similarity of image i and text i, read at the class token of the image and the last token of the text.

    logits_per_image: (B, B). text_tokens: (B,), each text's place whose feature stands for it. To explain one image by
    several texts, hand the network the image once for each text. Raises ValueError for other shapes.
    """
    images, texts = logits_per_image.shape
    if images != texts or text_tokens.shape != (texts,):
        repeat = f": hand in the image {texts} times, once for each text" if images == 1 else ""
        raise ValueError(
            f"logits_per_image has shape ({images}, {texts}) and text_tokens {tuple(text_tokens.shape)}, expected one "
            f"image for each text{repeat}"
        )
    samples = torch.arange(images, device=logits_per_image.device)
    rows = {"image": torch.full_like(samples, image_token), "text": text_tokens.to(samples)}
    return picked_targets(logits_per_image, (samples, samples), samples, rows)


def _check_range(what: str, indices: Tensor, count: int) -> None:
    wrong = indices[(indices < 0) | (indices >= count)]
    if wrong.numel():
        raise ValueError(f"there is no {what} {int(wrong[0])}; the network's go from 0 to {count - 1}")
