import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from lightning_xai.callbacks.debug_set_explanations import DebugSetExplanations
from lightning_xai.data.embedded_classification import EmbeddedClassificationModule, TrapSplit, TrapWorld
from lightning_xai.data.image_folder import ImageFolderModule
from lightning_xai.nets.small_vit import build_small_vit
from lightning_xai.tasks.classification import ClassificationTask

SIX = {name: TrapSplit(6) for name in ("val", "test", "pool", "discovery", "heldout", "unused")}
WORLD = TrapWorld(train=TrapSplit(12, 0.9), **SIX)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("trap") / "world"
    EmbeddedClassificationModule(str(place), WORLD).prepare_data()
    shutil.copytree(place / "pool", place / "debugset")
    return place


def fit(root, run_dir, callbacks, **arguments):
    torch.manual_seed(0)
    task = ClassificationTask(build_small_vit(6, 48, depth=1), lr=1e-3, warmup_epochs=0.5, layer_decay=1.0)
    data = ImageFolderModule(
        str(root),
        train=["train", "debugset"],
        image_size=48,
        eval_resize="squash",
        batch_size=6,
        num_workers=0,
        **arguments,
    )
    trainer = pl.Trainer(
        default_root_dir=run_dir, max_epochs=2, accelerator="cpu", callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    return task


def test_the_debug_set_s_images_are_drawn_before_and_after(root, tmp_path):
    watched = fit(root, tmp_path, [DebugSetExplanations(str(root / "debugset"), ["rollout"], samples=2)])
    files = sorted(tmp_path.rglob("*.png"))
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        f"pictures/debug_set/sample_{place}/step_{step:08d}.png" for place in (0, 5) for step in (0, 6)
    ]
    before, after = (np.array(Image.open(file)) for file in files[:2])
    assert before.shape == after.shape and not np.array_equal(before, after)
    alone = fit(root, tmp_path / "alone", [])
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))


def test_images_are_shown_without_augmentation(root):
    def black(image, target, draws):
        return torch.zeros_like(image), target

    data = ImageFolderModule(
        str(root), train=["train", "debugset"], image_size=48, eval_resize="squash", train_transform=black
    )
    data.setup("fit")
    loader = DebugSetExplanations(str(root / "debugset"), ["rollout"])._loader(data)
    assert len(loader.dataset) == 6 and loader.dataset[0][0].float().std() > 0
    assert data.train_set[0][0].max() == 0


def test_data_without_image_files_is_refused():
    with pytest.raises(TypeError, match="LightningDataModule has no training set of image files"):
        DebugSetExplanations("debugset", ["rollout"])._loader(pl.LightningDataModule())


def test_a_folder_without_training_images_is_named(root, tmp_path):
    with pytest.raises(ValueError, match="no training image lies in"):
        fit(root, tmp_path, [DebugSetExplanations(str(root / "heldout"), ["rollout"])])
