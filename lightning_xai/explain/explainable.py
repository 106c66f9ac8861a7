"""What a task offers so that commands, callbacks and measurements can explain it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_xai.explain.targets import Targets

PLAIN_CHOICES = ("predicted", "truth", "kept")


@dataclass(frozen=True)
class Explained:
    """What is explained of a batch: T targets and what they mean.

    names: T captions such as "query 12: heart 0.93". classes: (T,) int64, index of the class, -1 where there is none.
    boxes: (T, 4) xyxy in pixels of the padded network input, of the predicted object; None for whole images. objects:
    (T,) int64, the annotated object in the sample's target that it stands for (choice "truth"); None otherwise.
    """

    targets: Targets
    names: tuple[str, ...]
    classes: Tensor
    boxes: Tensor | None = None
    objects: Tensor | None = None

    def __post_init__(self):
        count = len(self.targets)
        given = {"names": len(self.names), "classes": len(self.classes)}
        given |= {k: len(v) for k, v in (("boxes", self.boxes), ("objects", self.objects)) if v is not None}
        wrong = [f"{many} {name}" for name, many in given.items() if many != count]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} do not fit {count} targets")

    def only(self, kept: Sequence[int]) -> "Explained":
        """Some of the targets, in this order; raises LookupError for none."""
        if not kept:
            raise LookupError(f"none of {len(self.targets)} targets is kept, so there is nothing to explain")
        chosen = torch.tensor(kept, device=self.targets.scores.device)
        targets = Targets(
            self.targets.scores[chosen],
            self.targets.samples[chosen],
            {stream: rows[chosen] for stream, rows in self.targets.rows.items()},
        )
        boxes, objects = (v if v is None else v[chosen.to(v.device)] for v in (self.boxes, self.objects))
        return Explained(
            targets, tuple(self.names[i] for i in kept), self.classes[chosen.to(self.classes.device)], boxes, objects
        )


@dataclass(frozen=True)
class Prediction:
    """What a task says about one sample, to be drawn.

    lines: sentences such as the five best classes, "tabby 0.68". boxes: (N, 4) xyxy in pixels of the network input,
    with a label each; None where the task finds no boxes.
    """

    lines: tuple[str, ...]
    boxes: Tensor | None = None
    labels: tuple[str, ...] = ()


@runtime_checkable
class Explainable(Protocol):
    """A LightningModule whose predictions can be explained.

    net: declares `sites()` and `streams(outputs)`. prepare: a batch's positional inputs of `net`, normalised, on the
    device of the batch. explained: what of `net`'s outputs is explained; `choice` as `Choice.parse` reads it, at most
    `limit` targets a sample; raises ValueError for a choice that the task does not have and LookupError where a batch
    has no target at all. prediction: what the outputs say about one sample. A task may have an `intervention`; its
    context `applied(net)` is around the forward passes that are explained.
    """

    net: nn.Module

    def prepare(self, batch: Mapping[str, Any]) -> tuple: ...

    def explained(
        self, outputs: Any, batch: Mapping[str, Any], choice: str = "predicted", limit: int | None = None
    ) -> Explained: ...

    def prediction(self, outputs: Any, batch: Mapping[str, Any], sample: int) -> Prediction: ...


@dataclass(frozen=True)
class Choice:
    """Which targets are explained, as a person writes it.

    kind: "predicted", "truth", "kept", "class" or "query". query: of "query:Q". class_index: of "class:NAME|INDEX" and
    "query:Q:CLASS"; None where the prediction decides.
    """

    kind: Literal["predicted", "truth", "kept", "class", "query"]
    query: int | None = None
    class_index: int | None = None

    @classmethod
    def parse(
        cls,
        text: str,
        offered: Sequence[str],
        classes: int = 0,
        class_names: Sequence[str] | None = None,
        queries: int = 0,
    ) -> "Choice":
        """Read a choice; raises ValueError that says what there is.

        offered: the kinds that the task has. classes, class_names, queries: what "class:..." and "query:..." may name.
        """
        kind, *parts = str(text).split(":", 1)
        if kind not in offered or bool(parts) != (kind not in PLAIN_CHOICES):
            forms = {"class": "class:NAME or class:INDEX", "query": "query:Q or query:Q:CLASS"}
            there_are = ", ".join(forms.get(each, each) for each in offered)
            raise ValueError(f"there is no target {text!r}; this task explains {there_are}")
        if kind == "class":
            return cls(kind, class_index=class_named(parts[0], classes, class_names))
        if kind == "query":
            number, *named = parts[0].split(":", 1)
            if not number.isdecimal() or int(number) >= queries:
                raise ValueError(f"there is no query {number!r}; the network's go from 0 to {queries - 1}")
            return cls(kind, int(number), class_named(named[0], classes, class_names) if named else None)
        return cls(kind)


def class_named(text: str, classes: int, class_names: Sequence[str] | None = None) -> int:
    """The index of a class given by its name or number; raises ValueError that says which there are."""
    names = list(class_names or ())
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < classes:
        return int(text)
    known = [name for name in names if name]
    shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    raise ValueError(f"there is no class {text!r}; they go from 0 to {classes - 1}" + (f": {shown}" if shown else ""))


def require_explainable(task: Any) -> None:
    """Raise TypeError, saying what is missing, for a task that cannot be explained."""
    missing = [f"{name}(...)" for name in ("prepare", "explained", "prediction") if not hasattr(task, name)]
    net = getattr(task, "net", None)
    if net is None:
        missing.insert(0, "net")
    missing += [f"net.{name}(...)" for name in ("sites", "streams") if net is not None and not hasattr(net, name)]
    if missing:
        raise TypeError(
            f"{type(task).__name__} cannot be explained: it lacks {', '.join(missing)}. A task has net, prepare, "
            "explained and prediction, and its network says with sites() and streams(outputs) where its attention is"
        )


def explainable_task(model: Any) -> Any:
    """The model itself, or the task inside a model that measures its explanations; TypeError where there is none."""
    task = model if hasattr(model, "explained") else getattr(model, "task", model)
    require_explainable(task)
    return task
