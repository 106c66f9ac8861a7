import json

import numpy as np
import pytest
import torch

from lightning_xai.data.embedded_classification import (
    EmbeddedClassificationModule,
    TrapSplit,
    TrapWorld,
    read_truth,
    write_trap_world,
)
from lightning_xai.data.render_scene import render
from lightning_xai.data.trap_scene import TrapRecipe, sample_trap_scene

SMALL = {
    "val": TrapSplit(6, 0.9),
    "test": TrapSplit(6, 0.9),
    "pool": TrapSplit(6),
    "discovery": TrapSplit(6),
    "unused": TrapSplit(6, 0.9),
}
WORLD = TrapWorld(train=TrapSplit(24, 0.9), heldout=TrapSplit(12), **SMALL)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_trap_world(WORLD, tmp_path_factory.mktemp("trap") / "world")


def test_pictures_and_masks_are_those_of_the_scenes(root):
    data = EmbeddedClassificationModule(str(root), WORLD, test="heldout", batch_size=8)
    data.prepare_data()
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert batch["images"].dtype == torch.uint8 and batch["images"].shape == (8, 3, 48, 48)
    truth = read_truth(root)
    for image, mask, label, index in zip(
        *(batch[n] for n in ("images", "object_masks", "labels", "index")), strict=True
    ):
        path = data.test_set.path(int(index))
        drawn = sample_trap_scene(WORLD.recipe, 0.0, 0, 5, int(path.stem))
        drawing = render(drawn.scene)
        assert np.array_equal(image.numpy(), drawing.pixels)
        assert np.array_equal(mask.numpy() == 1, drawing.visible[0])
        assert int(label) == drawn.label
        true = truth[path.relative_to(root).as_posix()]
        assert true["class"] == data.class_names[drawn.label] == path.parent.name
        assert true["cue"] == WORLD.recipe.cue_names[drawn.cue] and len(true["mark"]) == 4


def test_it_trains_as_any_folder_of_classes(root):
    data = EmbeddedClassificationModule(str(root), WORLD, batch_size=8)
    data.prepare_data()
    data.setup("fit")
    assert data.num_classes == 6 and data.class_names == list(WORLD.recipe.shapes)
    assert len(data.train_set) == 24 and len(data.val_set) == 6
    batch = next(iter(data.train_dataloader()))
    assert sorted(batch) == ["images", "index", "labels"]


def test_a_world_is_drawn_once(root, tmp_path):
    file = next((root / "train").rglob("*.png"))
    before = file.stat().st_mtime_ns
    write_trap_world(WORLD, root)
    assert file.stat().st_mtime_ns == before
    again = write_trap_world(WORLD, tmp_path / "again")
    assert (again / file.relative_to(root)).read_bytes() == file.read_bytes()


def test_another_world_is_not_drawn_over(root, tmp_path):
    other = TrapWorld(recipe=TrapRecipe(cue="background"), train=TrapSplit(24, 0.9), heldout=TrapSplit(12), **SMALL)
    with pytest.raises(FileExistsError, match="holds another world"):
        write_trap_world(other, root)
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="something else"):
        write_trap_world(WORLD, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_nothing_is_left_of_a_world_that_could_not_be_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_trap_world(WORLD, tmp_path / "world")
    assert not list(tmp_path.iterdir())


def test_every_split_needs_each_class():
    with pytest.raises(ValueError, match="val has 3 pictures"):
        TrapWorld(val=TrapSplit(3))
