"""Pictures of what a captioner attends to."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from lightning_xai.callbacks import caption_views
from lightning_xai.callbacks.caption_views import CaptionViews
from lightning_xai.data.drawn_features import FEATURE_SIZE
from lightning_xai.data.embedded_scene_graphs import EmbeddedSceneGraphsModule
from lightning_xai.nets.asg_captioner import ASGCaptioner
from lightning_xai.tasks.captioning import CaptioningTask


def make_task(model_type: str = "rgcn.flow.memory") -> CaptioningTask:
    torch.manual_seed(0)
    return CaptioningTask(ASGCaptioner(model_type, 30, FEATURE_SIZE, FEATURE_SIZE, hidden_dim=16), max_words=5)


def make_data() -> EmbeddedSceneGraphsModule:
    return EmbeddedSceneGraphsModule(n_train=8, n_val=6, batch_size=8)


def make_trainer(folder, callback, **options) -> pl.Trainer:
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    defaults = {"accelerator": "cpu", "num_sanity_val_steps": 0, "default_root_dir": folder, "callbacks": callback}
    return pl.Trainer(**{**defaults, **dict.fromkeys(quiet, False), **options})


@pytest.mark.parametrize("model_type", ["rgcn.flow.memory", "node"])
def test_what_is_drawn_is_what_the_network_did(tmp_path, monkeypatch, model_type):
    drawn = []

    def draw(image, nodes, words, attention, gates, title, memory):
        drawn.append((image, nodes, words, attention, gates, title, memory))
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(caption_views, "draw_caption_nodes", draw)
    task, data = make_task(model_type), make_data()
    make_trainer(tmp_path, CaptionViews(samples=2)).validate(task, data, verbose=False)
    assert sorted(path.name for path in (tmp_path / "pictures" / "captions").iterdir()) == [
        "val000000_0",
        "val000003_0",
    ]
    batch = data.collate([data.val_set[0], data.val_set[3]])
    task.net.eval()
    for row, (image, nodes, words, attention, gates, title, memory) in enumerate(drawn):
        assert np.array_equal(image, data.picture("val", 3 * row))
        assert tuple(node.name for node in nodes) == batch["nodes"][row].names
        said = task.net.greedy(batch["graph"], 5)
        assert words == data.vocabulary.decode(said["words"][row].tolist()).split()
        numbers = torch.tensor([[0, *(data.vocabulary.number[word] for word in words), 1]])
        one = {name: tensor[row : row + 1] for name, tensor in batch["graph"].items()}
        with torch.no_grad():  # the same words again, given instead of found
            again = task.net(one, numbers)
        np.testing.assert_allclose(attention, again["attention"][0, : len(words), : len(nodes)], atol=1e-5)
        assert title.endswith(f"asked for: {batch['phrases'][row]}")
        if model_type == "node":
            assert gates is None and memory is None
        else:
            np.testing.assert_allclose(gates[:, 0], again["interpolate_gate"][0, : len(words), 0], atol=1e-5)
            np.testing.assert_allclose(gates[:, 1:], again["flow_gate"][0, : len(words)], atol=1e-5)
            np.testing.assert_allclose(memory, again["sentinel_gate"][0, : len(words), 0], atol=1e-5)


def test_every_n_epochs_and_the_last_without_disturbing(tmp_path):
    weights = []
    for name, callbacks in (("with", CaptionViews(samples=1, every_n_epochs=2)), ("without", [])):
        task = make_task()
        pl.seed_everything(1)
        make_trainer(tmp_path / name, callbacks, max_epochs=3).fit(task, make_data())
        weights.append(torch.cat([p.detach().flatten() for p in task.parameters()]))
    assert torch.equal(*weights)  # although the network has dropout
    files = sorted(path.name for path in (tmp_path / "with" / "pictures" / "captions" / "val000000_0").iterdir())
    assert files == ["step_00000002.png", "step_00000003.png"]


def test_pictures_from_files_and_none(tmp_path):
    class Nodes:
        boxes = ((1, 2, 30, 20), (5, 5, 12, 40))

    assert caption_views._pixels(None, Nodes).shape == (48, 38, 3)
    Image.new("L", (9, 7), 200).save(tmp_path / "grey.png")
    assert (caption_views._pixels(tmp_path / "grey.png", Nodes) == np.full((7, 9, 3), 200)).all()


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="samples=0, every_n_epochs=1: each is at least 1"):
        CaptionViews(samples=0)
    with pytest.raises(TypeError, match="not for BoringModel with BoringDataModule: leave it out here"):
        from pytorch_lightning.demos.boring_classes import BoringDataModule, BoringModel

        make_trainer(tmp_path, CaptionViews()).validate(BoringModel(), BoringDataModule(), verbose=False)
