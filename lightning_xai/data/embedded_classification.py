"""The embedded world with a trap as classification folders: drawn once, then read as any other pictures.

root/train/star/000003.png     the splits: train, val and test with the cue; pool, discovery and heldout without
root/masks/train/star/...      where the object is (see `object_mask`)
root/truth.jsonl               of each picture its path, class, cue and the box of its mark
root/world.json                what all of it is drawn from
"""

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lightning_xai.data.image_folder import ImageFolderModule
from lightning_xai.data.object_mask import write_object_mask
from lightning_xai.data.render_scene import render
from lightning_xai.data.trap_scene import TrapRecipe, mark_box, sample_trap_scene

DESCRIPTION, TRUTH, MASKS = "world.json", "truth.jsonl", "masks"
DEFAULT_RECIPE = TrapRecipe()


@dataclass(frozen=True)
class TrapSplit:
    """How many pictures a folder holds, and how strongly their cue goes with the class (see `trap_scene`)."""

    pictures: int
    strength: float | None = 0.0


@dataclass(frozen=True)
class TrapWorld:
    """The splits of a world; each picture is a function of (recipe, strength, seed, its split's place, index).

    train, val and test hold the trap, and so does `unused`: more pictures like those of training. `pool` (clean
    candidates for a debug set), `discovery` (where failures are looked for) and `heldout` (where repair is measured)
    do not: their cue is drawn evenly.
    """

    recipe: TrapRecipe = DEFAULT_RECIPE
    train: TrapSplit = TrapSplit(3000, 0.9)
    val: TrapSplit = TrapSplit(300, 0.9)
    test: TrapSplit = TrapSplit(600, 0.9)
    pool: TrapSplit = TrapSplit(1800)
    discovery: TrapSplit = TrapSplit(600)
    heldout: TrapSplit = TrapSplit(600)
    unused: TrapSplit = TrapSplit(1800, 0.9)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, split in self.splits().items():
            if split.pictures < len(self.recipe.shapes):
                raise ValueError(
                    f"{name} has {split.pictures} pictures, but needs one of each of {len(self.recipe.shapes)} classes"
                )

    def splits(self) -> dict[str, TrapSplit]:
        """The splits by name, in a fixed order."""
        names = ("train", "val", "test", "pool", "discovery", "heldout", "unused")
        return {name: getattr(self, name) for name in names}

    def description(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return json.loads(json.dumps(asdict(self)))


DEFAULT_WORLD = TrapWorld()


def write_trap_world(world: TrapWorld, root: str | os.PathLike) -> Path:
    """Draw `world` into the folder `root`, or leave it where just this world is there already.

    The folder appears only when it is complete. Raises FileExistsError where it holds something else.
    """
    root = Path(root)
    description = root / DESCRIPTION
    if description.is_file() and json.loads(description.read_text()) == world.description():
        return root
    if root.exists() and any(root.iterdir()):
        there = "another world" if description.is_file() else "something else"
        raise FileExistsError(f"'{root}' holds {there}: remove it, or give another folder for the embedded world")
    root.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        with open(fresh / TRUTH, "w") as truth:
            for number, (name, split) in enumerate(world.splits().items()):
                for index in range(split.pictures):
                    truth.write(json.dumps(_write_picture(world, fresh, number, name, index)) + "\n")
        (fresh / DESCRIPTION).write_text(json.dumps(world.description(), indent=1) + "\n")
        fresh.chmod(0o755)
        if root.exists():
            root.rmdir()
        fresh.rename(root)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return root


def _write_picture(world: TrapWorld, folder: Path, number: int, split: str, index: int) -> dict[str, Any]:
    recipe = world.recipe
    drawn = sample_trap_scene(recipe, world.splits()[split].strength, world.seed, number, index)
    drawing = render(drawn.scene)
    below = Path(split, recipe.shapes[drawn.label], f"{index:06d}.png")
    (folder / below).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(drawing.picture)).save(folder / below, compress_level=1)
    write_object_mask(folder / MASKS / below, torch.from_numpy(drawing.visible[0].astype(np.int8)))
    box = mark_box(drawn.scene)
    return {
        "path": below.as_posix(),
        "class": recipe.shapes[drawn.label],
        "cue": None if drawn.cue < 0 else recipe.cue_names[drawn.cue],
        "mark": None if box is None else [round(side, 1) for side in box],
    }


def read_truth(root: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """What is true of each picture of a drawn world, by its path below `root`."""
    lines = (Path(root) / TRUTH).read_text().splitlines()
    return {entry["path"]: entry for entry in map(json.loads, lines)}


class EmbeddedClassificationModule(ImageFolderModule):
    """Classification folders of a `TrapWorld`, drawn into `root` before they are first used.

    The other arguments are those of `ImageFolderModule`; test="heldout" evaluates where the cue is broken.
    """

    def __init__(
        self,
        root: str = "runs/trap_world",
        world: TrapWorld = DEFAULT_WORLD,
        test: str = "test",
        num_workers: int = 0,
        **arguments: Any,
    ):
        super().__init__(
            root,
            test=test,
            num_workers=num_workers,
            class_names=list(world.recipe.shapes),
            masks=MASKS,
            image_size=world.recipe.side,
            eval_resize="squash",
            **arguments,
        )
        self.world = world

    def prepare_data(self) -> None:
        write_trap_world(self.world, self.root)
