"""What a captioner looks at, during validation: each word with the nodes of the graph that it attends to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from torch import Tensor

from lightning_xai.callbacks.pictures import log_picture
from lightning_xai.callbacks.undisturbed import require_whole_network, undisturbed
from lightning_xai.draw.caption_nodes import DrawnNode, draw_caption_nodes

END = 1  # the number of the word that ends a caption


class CaptionViews(pl.Callback):
    """Caption some graphs of the validation set in the validation of every n-th epoch and the last, and draw how.

    The picture, pictures/captions/<sample>, has the nodes' boxes, the words in the colour of the node they attend to
    most, the attention of each word to each node, where the captioner has flow attention its gates (how much is by
    content, and of the rest what stays, goes one edge on and two), and where it has a memory how much each word
    rewrites of the nodes that it attends to. The graphs are `samples` evenly spaced ones; they are
    captioned greedily on the first process alone, in eval mode. The data module has `val_set`, `collate`, and
    `picture(split, index)`, an array uint8 (h, w, 3), a file, or None for white.
    """

    def __init__(self, samples: int = 3, every_n_epochs: int = 1):
        if min(samples, every_n_epochs) < 1:
            given = f"samples={samples}, every_n_epochs={every_n_epochs}"
            raise ValueError(f"{given}: each is at least 1; leave the callback out to draw nothing")
        self.samples, self.every_n_epochs = samples, every_n_epochs

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require_whole_network(trainer, self)
        if not hasattr(getattr(pl_module, "net", None), "greedy") or not hasattr(trainer.datamodule, "picture"):
            raise TypeError(
                f"CaptionViews is for CaptioningTask with a data module of scene graphs, not for "
                f"{type(pl_module).__name__} with {type(trainer.datamodule).__name__}: leave it out here"
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        if trainer.state.fn == "fit" and epoch % self.every_n_epochs and epoch != trainer.max_epochs:
            return
        data = trainer.datamodule
        count = min(self.samples, len(data.val_set))
        places = [number * len(data.val_set) // count for number in range(count)]
        batch = data.collate([data.val_set[place] for place in places])
        graph = trainer.precision_plugin.convert_input(
            trainer.strategy.batch_to_device(batch["graph"], pl_module.device)
        )
        with undisturbed(trainer, pl_module):
            said = pl_module.net.greedy(graph, pl_module.max_words)
        for row, place in enumerate(places):
            picture = draw_sample(data, batch, said, row, _pixels(data.picture("val", place), batch["nodes"][row]))
            log_picture(trainer, f"captions/{batch['names'][row]}", picture, trainer.global_step)


def draw_sample(data: Any, batch: dict[str, Any], said: dict[str, Tensor], row: int, pixels: np.ndarray) -> np.ndarray:
    """One graph of a batch with what `ASGCaptioner.greedy` said of it, as a picture."""
    nodes = batch["nodes"][row]
    drawn = [DrawnNode(*parts) for parts in zip(nodes.names, nodes.types, nodes.boxes, nodes.owners, strict=True)]
    numbers = said["words"][row].tolist()
    # each word has its own row of attention, so none is left out, as decoding a caption leaves out a begin in front
    words = [data.vocabulary.words[number] for number in numbers[: numbers.index(END) if END in numbers else None]]
    shown = {name: values[row, : len(words)].float().cpu().numpy() for name, values in said.items()}
    gates = None
    if "flow_gate" in shown:
        gates = np.concatenate([shown["interpolate_gate"], shown["flow_gate"]], 1)
    memory = shown["sentinel_gate"][:, 0] if "sentinel_gate" in shown else None
    asked = f"\nasked for: {batch['phrases'][row]}" if batch["phrases"][row] else ""
    title = (" ".join(words) or "(no word)") + asked
    return draw_caption_nodes(pixels, drawn, words, shown["attention"][:, : len(drawn)], gates, title, memory)


def _pixels(picture: np.ndarray | Path | None, nodes: Any) -> np.ndarray:
    """A picture as uint8 (h, w, 3); white, as large as the boxes need, where there is none."""
    if picture is None:
        w, h = (int(max(box[side] for box in nodes.boxes)) + 8 for side in (2, 3))
        return np.full((h, w, 3), 255, np.uint8)
    if isinstance(picture, np.ndarray):
        return picture
    with Image.open(picture) as opened:
        return np.asarray(opened.convert("RGB"))
