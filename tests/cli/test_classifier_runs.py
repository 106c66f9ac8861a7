import numpy as np
import pytest
from PIL import Image

from lightning_xai.cli import classifier_runs
from lightning_xai.cli.classifier_runs import evaluated_images, trained
from lightning_xai.data.image_folder import ImageFolderModule


@pytest.fixture
def root(tmp_path):
    for folder in ("train/cat", "train/dog", "heldout/dog", "masks/heldout/dog"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).convert("L").save(tmp_path / folder / "1.png")
    return tmp_path


def test_images_are_read_as_the_data_module_reads_them(root):
    data = ImageFolderModule(root, test="heldout", max_bad_images=7, max_pixels=100)
    images = evaluated_images(data, "heldout")
    assert images.labels.tolist() == [1] and images.mask_path(0) is None
    assert images.transform is data.evaluation_transform
    data.setup("test")
    assert images.max_pixels == data.test_set.max_pixels == 100
    assert images.faults.allowed == data.test_set.faults.allowed == 7


@pytest.mark.parametrize("absolute", [False, True])
def test_masks_are_those_of_the_data_module(root, absolute):
    folder = str(root / "heldout") if absolute else "heldout"
    data = ImageFolderModule(root, test=folder, masks="masks")
    images = evaluated_images(data, folder, masks=True)
    assert images.mask_path(0) == root / "masks/heldout/dog/1.png"


def test_a_training_goes_on_where_it_ended_and_is_not_repeated(tmp_path, monkeypatch):
    calls, last = [], tmp_path / "run/checkpoints/last.ckpt"

    def fit(command, words):
        print("said")
        calls.append([command, *words])
        last.parent.mkdir(parents=True, exist_ok=True)
        last.touch()
        return 143 if len(calls) == 1 else 0

    monkeypatch.setattr(classifier_runs, "run_training", fit)
    with pytest.raises(SystemExit) as stopped:
        trained(["--a", "1"], tmp_path / "run")
    assert stopped.value.code == 143
    for _ in range(2):
        assert trained(["--a", "1"], tmp_path / "run") == last
    first = ["fit", "--a", "1", "--run_dir", str(tmp_path / "run")]
    assert calls == [first, [*first, "--ckpt_path", str(last)]]
    assert (tmp_path / "run/log.txt").read_text() == "said\nsaid\n"
