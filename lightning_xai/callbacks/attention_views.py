"""Pictures of what one query of a network with deformable attention looked at, from a recording of its forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lightning_xai.callbacks.pictures import write_picture
from lightning_xai.draw.heat_map import HeatPanel, draw_heat_maps
from lightning_xai.draw.palette import name_of
from lightning_xai.draw.query_evolution import draw_query_evolution
from lightning_xai.draw.sampling_points import PointPanel, draw_sampling_points
from lightning_xai.explain.attention_map import level_maps, merged_map
from lightning_xai.explain.intervention import Extent, extents
from lightning_xai.explain.query_evolution import evolution_of
from lightning_xai.explain.recording import DeformableRecord, Recording, record
from lightning_xai.explain.sampling_points import ImageFrame, cell_centre, cell_of, sampling_points

# Module: all layers together; layers: a panel each; grid: heads × levels of one layer; points and heat: one layer.
QUERY_VIEWS = ("module", "layers", "grid", "points", "heat")


@dataclass(frozen=True)
class Selection:
    """Which attention is shown: of the encoder or the decoder, of which layers, heads and levels (None: all).

    Views of a single layer show the last of `layers`.
    """

    part: str = "decoder"
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    levels: Sequence[int] | None = None

    def check(self, existing: dict[str, Extent]) -> "Selection":
        """The selection with every None filled in; raises ValueError for what a network of these extents lacks."""
        if self.part not in existing:
            raise ValueError(f"there is no part {self.part!r}; choose from {', '.join(existing)}")
        filled = {}
        for name in ("layers", "heads", "levels"):
            size = getattr(existing[self.part], name)
            indices = getattr(self, name)
            filled[name] = list(range(size)) if indices is None else [int(i) for i in indices]
            wrong = [i for i in filled[name] if not 0 <= i < size]
            if wrong or not filled[name]:
                what = f"{name[:-1]} {wrong[0]} does not exist" if wrong else f"no {name} are chosen"
                raise ValueError(f"{what}; the {self.part} has {name} 0 to {size - 1}")
        return Selection(self.part, **filled)


class RecordedImage:
    """One image of a recorded batch, ready to be drawn on.

    picture: uint8 (h, w, 3), of the size `frame.original`. outputs: of the network, on any device.
    """

    def __init__(self, picture: np.ndarray, recording: Recording, outputs: dict, frame: ImageFrame, image: int = 0):
        self.picture, self.recording, self.outputs = picture, recording, outputs
        self.frame, self.image = frame, image

    def query_box(self, query: int) -> np.ndarray:
        """The finally predicted box of an object query, xyxy in pixels of the picture."""
        return self.frame.boxes_from_image(self.outputs["pred_boxes"][self.image, query].float()).cpu().numpy()

    def references(self, part: str, layer: int, query: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The reference point that a layer's samples were placed by, and its box where it is one, in pixels."""
        if part == "encoder":
            return self.frame.from_padded(cell_centre(self._record(part, layer).shapes, query)).numpy(), None
        reference = self.outputs["reference_points"][layer][self.image, query].float().cpu()
        box = self.frame.boxes_from_image(reference).numpy() if len(reference) == 4 else None
        return self.frame.from_image(reference[:2]).numpy(), box

    def query_views(self, query: int, name: str, selection: Selection, views: Sequence[str]) -> dict[str, np.ndarray]:
        """Pictures of one query by the name of the view; query: an object query, or a token of the encoder."""
        unknown = sorted(set(views) - set(QUERY_VIEWS))
        if unknown:
            raise ValueError(f"there is no view {unknown[0]!r}; choose from {', '.join(QUERY_VIEWS)}")
        chosen = selection.check(recorded_extents(self.recording))
        return {view: getattr(self, f"_{view}")(query, name, chosen) for view in QUERY_VIEWS if view in views}

    def has_evolution(self) -> bool:
        """Whether the network gave the predictions of every decoder layer, which `evolution` needs."""
        return len(self.outputs["reference_points"]) == len(self.outputs.get("aux_outputs", ())) + 2

    def evolution(self, class_names: Sequence[str], shown: Sequence[int], title: str = "") -> np.ndarray:
        """The decoder's module view: references, predictions and arrows of the queries `shown`, and all by layer."""
        evolution = evolution_of(self.outputs, self.frame, self.image)
        arrays = (evolution.references, evolution.centres, evolution.labels, evolution.scores)
        references, centres, labels, scores = (array.cpu().numpy() for array in arrays)
        return draw_query_evolution(
            self.picture, references, centres, labels, scores, class_names, np.asarray(shown, dtype=int), title
        )

    def _record(self, part: str, layer: int) -> DeformableRecord:
        return self.recording.at(part, layer)

    def _panel(self, query: int, chosen: Selection, layer: int, heads, levels, caption: str = "") -> PointPanel:
        record = self._record(chosen.part, layer)
        parts = [
            sampling_points(record, self.frame, query, self.image, head=head, level=level)
            for head in heads
            for level in levels
        ]
        point, box = self.references(chosen.part, layer, query)
        return PointPanel(
            xy=torch.cat([part.xy for part in parts]).cpu().numpy(),
            weights=torch.cat([part.weights for part in parts]).cpu().numpy(),
            reference=point,
            box=self.query_box(query) if chosen.part == "decoder" else None,
            reference_box=box,
            caption=caption,
        )

    def _module(self, query: int, name: str, chosen: Selection) -> np.ndarray:
        panels = [self._panel(query, chosen, layer, chosen.heads, chosen.levels) for layer in chosen.layers]
        merged = PointPanel(
            xy=np.concatenate([panel.xy for panel in panels]),
            weights=np.concatenate([panel.weights for panel in panels]),
            reference=panels[-1].reference,
            box=panels[-1].box,
            caption=f"{chosen.part}, layers {_listed(chosen.layers)} together, {_within(chosen)}",
        )
        return draw_sampling_points(self.picture, [merged], title=name)

    def _layers(self, query: int, name: str, chosen: Selection) -> np.ndarray:
        panels = [
            self._panel(query, chosen, layer, chosen.heads, chosen.levels, f"{chosen.part} layer {layer}")
            for layer in chosen.layers
        ]
        return draw_sampling_points(self.picture, panels, columns=3, title=f"{name}\n{_within(chosen)}")

    def _grid(self, query: int, name: str, chosen: Selection) -> np.ndarray:
        layer = chosen.layers[-1]
        panels = []
        for level in chosen.levels:
            for head in chosen.heads:
                panel = self._panel(query, chosen, layer, [head], [level])
                caption = f"head {head}, level {level}: {panel.weights.sum():.0%}"
                panels.append(
                    PointPanel(panel.xy, panel.weights, panel.reference, panel.box, panel.reference_box, caption)
                )
        title = f"{name}\n{chosen.part} layer {layer}; per cent: the share of a head's weight that goes to the level"
        return draw_sampling_points(self.picture, panels, columns=len(chosen.heads), title=title, zoom=True)

    def _points(self, query: int, name: str, chosen: Selection) -> np.ndarray:
        layer = chosen.layers[-1]
        panel = self._panel(
            query, chosen, layer, chosen.heads, chosen.levels, f"{chosen.part} layer {layer}, {_within(chosen)}"
        )
        return draw_sampling_points(self.picture, [panel], title=name)

    def _heat(self, query: int, name: str, chosen: Selection) -> np.ndarray:
        layer = chosen.layers[-1]
        record = self._record(chosen.part, layer)
        by_head = [level_maps(record, query, self.image, head) for head in chosen.heads]
        maps = [torch.stack([maps[level] for maps in by_head]).mean(0) for level in chosen.levels]
        extent = self.frame.extent()
        panels = [HeatPanel(merged_map(maps).cpu().numpy(), extent, "all levels" if len(maps) > 1 else "")]
        if len(maps) > 1:
            panels += [
                HeatPanel(cells.cpu().numpy(), extent, f"level {level}: {cells.sum():.0%} of the weight")
                for level, cells in zip(chosen.levels, maps, strict=True)
            ]
        point, _ = self.references(chosen.part, layer, query)
        box = self.query_box(query) if chosen.part == "decoder" else None
        title = f"{name}\n{chosen.part} layer {layer}, mean over {_some('head', chosen.heads)}"
        return draw_heat_maps(
            self.picture, panels, columns=2 if len(panels) == 4 else 3, title=title, box=box, reference=point
        )


def plot_attention(
    net: nn.Module,
    images: Tensor,
    mask: Tensor,
    picture: np.ndarray,
    folder: Path,
    class_names: Sequence[str],
    selection: Selection = Selection(),
    queries: Sequence[int] | None = None,
    position: tuple[float, float] | None = None,
    position_level: int = 0,
    detections: int = 3,
    views: Sequence[str] = QUERY_VIEWS,
    forward: Callable[[Tensor, Tensor], dict] | None = None,
) -> list[Path]:
    """Write pictures of what a network looks at in one image; returns their paths.

    images: (1, 3, H, W) normalised; mask: (1, H, W), True on padding; picture: uint8 (h, w, 3) that is drawn on, of any
    size. Of the decoder are shown the object queries `queries`, or those of the `detections` highest scores; of the
    encoder the cell of level `position_level` at `position` (x, y) in pixels of the picture, or at the best detections.
    forward: what runs the network, e.g. a task that puts interventions on it; by default the network itself.
    Raises ValueError for what the network or the picture does not have.
    """
    if position is not None:
        (x, y), (h, w) = position, picture.shape[:2]
        if not (0 <= x < w and 0 <= y < h):
            raise ValueError(f"position {x:g} {y:g} lies outside the picture, which is {w} pixels wide and {h} high")
    selection.check(extents(net))
    with torch.inference_mode(), record(net) as recording:
        outputs = (forward or net)(images, mask)
    valid = ~mask[0]
    size = (int(valid[:, 0].sum()), int(valid[0].sum()))
    frame = ImageFrame(tuple(mask.shape[1:]), size, picture.shape[:2])
    shown = RecordedImage(picture, recording, outputs, frame)
    scores, labels = outputs["pred_logits"][0].float().sigmoid().max(-1)
    if queries is None:
        queries = scores.topk(min(detections, len(scores))).indices.tolist()
    for query in queries:
        if not 0 <= query < len(scores):
            raise ValueError(f"there is no object query {query}; queries go from 0 to {len(scores) - 1}")

    written = []

    def write(name: str, picture: np.ndarray) -> None:
        written.append(folder / f"{name}.png")
        write_picture(written[-1], picture)

    if selection.part == "decoder":
        for query in queries:
            title = f"query {query}: {name_of(int(labels[query]), class_names)} {scores[query]:.2f}"
            for view, drawn in shown.query_views(query, title, selection, views).items():
                write(f"decoder_query_{query}_{view}", drawn)
        if shown.has_evolution():
            best = scores.topk(min(12, len(scores))).indices.tolist()
            paths = sorted({*queries, *best})
            write("decoder_queries", shown.evolution(class_names, paths, "object queries through the decoder"))
        return written

    if position is not None:
        centres = [torch.tensor(position, dtype=torch.float32)]
    else:
        centres = [frame.from_image(outputs["pred_boxes"][0, query, :2].float().cpu()) for query in queries]
    for centre in centres:
        title = f"encoder, level {position_level}, position ({centre[0]:.0f}, {centre[1]:.0f})"
        shapes = recording.at("encoder", 0).shapes
        token = cell_of(shapes, position_level, tuple(frame.to_padded(centre).tolist()))
        for view, drawn in shown.query_views(token, title, selection, views).items():
            write(f"encoder_level_{position_level}_x{centre[0]:.0f}_y{centre[1]:.0f}_{view}", drawn)
    return written


def recorded_extents(recording: Recording) -> dict[str, Extent]:
    """What a selection can choose from, by part of the recorded network."""
    return {
        part: Extent(layers, *recording.at(part, 0).attention_weights.shape[2:])
        for part, layers in recording.parts().items()
    }


def _listed(indices: Sequence[int]) -> str:
    consecutive = list(indices) == list(range(indices[0], indices[0] + len(indices)))
    if len(indices) > 2 and consecutive:
        return f"{indices[0]}–{indices[-1]}"
    return ", ".join(map(str, indices))


def _some(noun: str, indices: Sequence[int]) -> str:
    return f"{noun}{'s' if len(indices) > 1 else ''} {_listed(indices)}"


def _within(chosen: Selection) -> str:
    return f"{_some('head', chosen.heads)}, {_some('level', chosen.levels)}"
