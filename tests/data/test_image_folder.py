"""Class folders: labels, order, masks, and every state that a folder of pictures can be in."""

import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_xai.data.image_folder import ImageFolder, ImageFolderModule
from lightning_xai.data.picture_file import UnreadablePicture


def module(folders, **arguments) -> ImageFolderModule:
    arguments = {"image_size": 16, "batch_size": 2, "num_workers": 0, **arguments}
    return ImageFolderModule(folders.root, **arguments)


def levels(loader) -> list[list[int]]:
    """The grey level of each image, batch by batch: which picture it is."""
    return [batch["images"][:, 0, 0, 0].tolist() for batch in loader]


def damage(path) -> None:
    path.write_bytes(path.read_bytes()[:30])


def test_labels_are_places_among_the_training_folders(class_folders):
    data = module(class_folders)
    assert data.class_names == ["cat", "dog", "emu"] and data.num_classes == 3
    data.setup("fit")
    assert data.train_set.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert levels(data.val_dataloader()) == [[100, 101], [120, 121], [140, 141]]
    batch = next(iter(data.val_dataloader()))
    assert batch["images"].shape == (2, 3, 16, 16) and batch["labels"].tolist() == [0, 0]
    assert batch["index"].tolist() == [0, 1] and "object_masks" not in batch
    image, target = data.val_set.load(3)
    assert image.shape == (3, 40, 50) and int(target["label"]) == 1 and target["size"].tolist() == [40, 50]


def test_evaluation_keeps_the_labels_of_a_class_that_it_lacks(class_folders, capsys):
    shutil.rmtree(class_folders.root / "val" / "cat")
    data = module(class_folders)
    data.setup("fit")
    assert data.val_set.labels.tolist() == [1, 1, 2, 2]
    assert "4 pictures of 2 classes, none of 'cat'." in capsys.readouterr().err


def test_a_class_that_training_does_not_know(class_folders):
    (class_folders.root / "val" / "dog").rename(class_folders.root / "val" / "Dog")
    with pytest.raises(ValueError, match=r"val: 'Dog' is none of the 3 classes \('cat', 'dog', 'emu'\)"):
        module(class_folders).setup("validate")


def test_a_training_class_without_pictures(class_folders):
    (class_folders.root / "train" / "fox").mkdir()
    with pytest.raises(ValueError, match="train: no picture of 'fox'"):
        module(class_folders).setup("fit")
    data = module(class_folders, class_names=["cat", "dog", "emu", "fox"])
    data.setup("fit")
    assert data.num_classes == 4 and len(data.train_set) == 12


def test_given_names_fix_the_labels(class_folders, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("emu\nyak\ncat\ndog\n")
    data = module(class_folders, class_names=str(names))
    data.setup("validate")
    assert data.val_set.labels.tolist() == [2, 2, 3, 3, 0, 0]
    with pytest.raises(ValueError, match="'emu' is none of the 2 classes"):
        module(class_folders, class_names=["cat", "dog"]).setup("validate")
    with pytest.raises(ValueError, match=r"\['cat'\] is given twice"):
        module(class_folders, class_names=["cat", "cat"]).setup("validate")
    with pytest.raises(FileNotFoundError, match=r"class_names='nowhere\.txt': no such file"):
        module(class_folders, class_names="nowhere.txt").setup("validate")


def test_original_and_debug_set_together(class_folders):
    for number in range(3):
        class_folders.add("debug", "dog", number, level=200 + number)
    data = module(class_folders, train=["train", "debug"])
    data.setup("fit")
    assert len(data.train_set) == 15 and data.train_set.labels.tolist()[-3:] == [1, 1, 1]
    assert data.train_set.path(14) == class_folders.picture("debug", "dog", 2)
    class_folders.add("debug", "yak", 0, level=3)
    with pytest.raises(ValueError, match="debug: 'yak' is none of"):
        module(class_folders, train=["train", "debug"]).setup("fit")


def test_nested_hidden_and_other_files(class_folders):
    train = class_folders.root / "train"
    (train / "cat" / "more").mkdir()
    shutil.copy(class_folders.picture("train", "cat", 0), train / "cat" / "more" / "0.PNG")
    shutil.copy(class_folders.picture("train", "cat", 0), train / "cat" / "._0.png")
    (train / "cat" / "notes.txt").write_text("no picture")
    (train / ".cache").mkdir()
    data = module(class_folders)
    data.setup("fit")
    assert data.class_names == ["cat", "dog", "emu"]
    assert [str(path.relative_to(train)) for path in data.train_set.paths[:5]] == [
        *(f"cat/{number}.png" for number in range(4)),
        "cat/more/0.PNG",
    ]


def test_names_that_are_no_text(class_folders):
    shutil.copy(class_folders.picture("train", "cat", 0), class_folders.root / "train" / "cat" / "ü\udcff 寺.png")
    data = module(class_folders, max_bad_images=0)
    data.setup("fit")
    assert len([data.train_set[index] for index in range(13)]) == 13


def test_masks_go_with_their_pictures(class_folders):
    data = module(class_folders, masks="masks", eval_resize="squash")
    data.setup("fit")
    for batch in data.val_dataloader():
        assert batch["object_masks"].shape == (2, 16, 16)
        assert not batch["object_masks"][:, :, :8].any() and batch["object_masks"][:, :, 8:].all()
    assert "object_mask" not in data.train_set[0][1], "training reads no masks"
    class_folders.mask("val", "dog", 1).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of 6 pictures .* have no mask, the first one .*masks/val/dog/1.png"
    ):
        module(class_folders, masks="masks").setup("validate")


def test_an_unreadable_picture_is_replaced_and_told_of(class_folders, caplog):
    damage(class_folders.picture("val", "cat", 1))
    data = module(class_folders, max_bad_images=1)
    data.setup("validate")
    assert levels(data.val_dataloader()) == [[100, 120], [120, 121], [140, 141]]
    with caplog.at_level(logging.WARNING):
        data.teardown("validate")
    assert "1 unreadable pictures" in caplog.text and "cat/1.png" in caplog.text
    damage(class_folders.picture("val", "emu", 1))
    with pytest.raises(UnreadablePicture, match=r"2 of 6 pictures in .*val cannot be read and max_bad_images allows 1"):
        levels(data.val_dataloader())


def test_a_mask_of_another_size_counts_as_unreadable(class_folders):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(class_folders.mask("val", "cat", 0))
    data = module(class_folders, masks="masks", max_bad_images=0)
    data.setup("validate")
    with pytest.raises(UnreadablePicture, match="a mask of 9×9 for a picture of 50×40"):
        data.val_set[0]


def test_training_depends_on_seed_epoch_and_index_alone(class_folders):
    def marked(image, target, draws):
        image = image[:, :8, :8].clone()
        image[1] = draws.integer(0, 255)
        return image, target

    first = module(class_folders, train_transform=marked)
    first.setup("fit")
    again = module(class_folders, train_transform=marked, num_workers=2)
    again.setup("fit")
    for epoch in (0, 1):
        batches = []
        for data in (first, again):
            loader = data.train_dataloader()
            loader.sampler.set_epoch(epoch)
            batches.append([batch["images"][:, :2, 0, 0].tolist() for batch in loader])
        assert batches[0] == batches[1]
    assert not torch.equal(first.train_set[(0, 3)][0], first.train_set[(1, 3)][0])
    assert torch.equal(first.train_set[3][0], first.train_set[(0, 3)][0])


def test_too_few_pictures_for_a_batch(class_folders):
    data = module(class_folders, batch_size=64)
    data.setup("fit")
    with pytest.raises(ValueError, match="12 pictures do not fill one batch of batch_size=64 on 1 process"):
        data.train_dataloader()


def test_predict_with_and_without_classes(class_folders, tmp_path):
    data = module(class_folders)
    data.setup("predict")
    assert data.predict_set.labels.tolist() == [0, 0, 1, 1, 2, 2]
    loose = class_folders.root / "loose" / "deeper"
    loose.mkdir(parents=True)
    shutil.copy(class_folders.picture("val", "emu", 1), loose / "a.png")
    for place in ("loose", "loose/deeper/a.png", str(loose)):
        data = module(class_folders, predict=place)
        data.setup("predict")
        assert levels(data.predict_dataloader()) == [[141]]
        assert next(iter(data.predict_dataloader()))["labels"].tolist() == [-1]
    nameless = ImageFolderModule(tmp_path / "nowhere", predict=str(loose), num_workers=0)
    assert nameless.class_names is None
    nameless.setup("predict")
    with pytest.raises(FileNotFoundError, match="predict='gone'"):
        module(class_folders, predict="gone").setup("predict")


def test_another_test_set(class_folders):
    class_folders.add("held_out", "dog", 0, level=7)
    data = module(class_folders, test="held_out", masks="masks")
    data.setup("test")
    assert levels(data.test_dataloader()) == [[7]] and data.test_set.labels.tolist() == [1]
    data = module(class_folders)
    data.setup("test")
    assert data.test_set is data.val_set


def test_a_picture_of_ones_own(class_folders):
    batch = module(class_folders).picture_batch(torch.full((3, 30, 40), 9, dtype=torch.uint8))
    assert (
        batch["images"].shape == (1, 3, 16, 16) and batch["labels"].tolist() == [-1] and batch["index"].tolist() == [0]
    )


def test_missing_folders_and_bad_arguments(class_folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither 'train' nor 'val' is a folder there"):
        ImageFolderModule(tmp_path / "nowhere").setup("fit")
    with pytest.raises(FileNotFoundError, match="gone: no such folder"):
        module(class_folders, val="gone").setup("validate")
    with pytest.raises(FileNotFoundError, match="holds no class folders"):
        module(class_folders, train="train/cat").setup("fit")
    with pytest.raises(ValueError, match="eval_resize='stretch' is unknown"):
        module(class_folders, eval_resize="stretch")
    with pytest.raises(ValueError, match="eval_batch_size=0"):
        module(class_folders, eval_batch_size=0)
    (class_folders.root / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no picture in its 1 class folders"):
        module(class_folders, val="empty").setup("validate")
    pictures = ImageFolder(
        [class_folders.root / "val"], class_folders.CLASSES, lambda image, target, draws: (image, target)
    )
    with pytest.raises(IndexError, match="picture 6 does not exist"):
        pictures[6]


@pytest.mark.parametrize("replicas", [2, 3])
def test_every_picture_once_on_many_processes(class_folders, replicas, monkeypatch):
    seen = []
    for rank in range(replicas):
        data = module(class_folders)
        data.setup("validate")
        monkeypatch.setattr(data, "_process", lambda rank=rank: (rank, replicas))
        seen += [level for batch in levels(data.val_dataloader()) for level in batch]
    assert sorted(seen) == [100, 101, 120, 121, 140, 141]
