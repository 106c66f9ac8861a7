import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_xai.data.coco import CocoDataModule
from lightning_xai.data.detection_transforms import SCALES

BLOOD_CELLS = Path(__file__).parents[3] / "shared" / "data" / "blood_cells"
SMALL = {"scales": (30, 40), "crop_scales": (30, 40), "crop_range": (20, 30), "num_workers": 0}


class Watch(pl.LightningModule):
    """Notes the epoch, image ids and pixel sum of every batch."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.trained, self.validated, self.predicted = [], [], []

    def note(self, batch):
        return self.current_epoch, [int(t["image_id"]) for t in batch["targets"]], int(batch["images"].long().sum())

    def training_step(self, batch, _):
        self.trained.append(self.note(batch))
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, _):
        self.validated.append(self.note(batch)[1])

    def predict_step(self, batch, _):
        self.predicted.append(self.note(batch)[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(tmp_path, *callbacks, **arguments):
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks), callbacks=list(callbacks),
        default_root_dir=tmp_path, **{"max_epochs": 2, **arguments},
    )  # fmt: skip


def fit(coco, *callbacks, ckpt_path=None, data=None, **arguments):
    watch, module = Watch(), CocoDataModule(coco.root, **{**SMALL, **(data or {})})
    trainer(coco.root, *callbacks, **arguments).fit(watch, module, ckpt_path=ckpt_path, weights_only=False)
    return watch


def test_classes_are_the_category_ids(coco):
    data = CocoDataModule(coco.root)
    assert data.class_names == ["", "cat", "", "dog"] and data.num_classes == 4


def test_a_category_id_with_two_names_is_refused(coco):
    content = coco.read("val")
    content["categories"][0]["name"] = "lion"
    coco.write("val", content)
    with pytest.raises(ValueError, match="category id 1 is 'lion', but 'cat'"):
        _ = CocoDataModule(coco.root).class_names


def test_training_sees_each_epoch_in_another_order_and_drops_the_last_batch(coco):
    watch = fit(coco)
    assert len(watch.trained) == 2 * 4
    for epoch in (0, 1):
        ids = [i for at, batch, _ in watch.trained if at == epoch for i in batch]
        assert len(set(ids)) == 8
    assert [batch for _, batch, _ in watch.trained[:4]] != [batch for _, batch, _ in watch.trained[4:]]
    assert watch.validated[:3] == [[100, 101], [102, 103], [104]] and len(watch.validated) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_training_resumes_in_mid_epoch_with_the_same_samples(coco, workers):
    keep = ModelCheckpoint(coco.root / "ckpt", "{step}", every_n_train_steps=1, save_top_k=-1)
    full = fit(coco, keep).trained
    steps = range(1, 8) if workers == 0 else (2, 4)
    for step in steps:
        path = coco.root / "ckpt" / f"step={step}.ckpt"
        rest = fit(coco, ckpt_path=path, data={"num_workers": workers, "val_num_workers": 0}).trained
        assert rest == full[step:], f"after step {step}"


def test_training_resumes_from_a_checkpoint_at_the_end_of_an_epoch(coco):
    keep = ModelCheckpoint(coco.root / "ckpt", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    full = fit(coco, keep).trained
    assert fit(coco, ckpt_path=coco.root / "ckpt" / "epoch=0.ckpt").trained == full[4:]


def test_a_restart_in_the_middle_of_a_batch_repeats_that_batch(coco):
    class Stop(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            if trainer.global_step == 6:
                trainer.save_checkpoint(coco.root / "interrupted.ckpt")

    full = fit(coco, Stop()).trained
    assert fit(coco, ckpt_path=coco.root / "interrupted.ckpt").trained == full[6:]


def test_an_unreadable_picture_does_not_end_training_and_is_reported_once(coco, caplog):
    coco.picture("train", 4).write_bytes(b"broken")
    with caplog.at_level(logging.WARNING, logger="lightning_xai.data.coco"):
        watch = fit(coco, max_epochs=3, data={"num_workers": 2, "batch_size": 3})
    assert len(watch.trained) == 9
    lines = [record.getMessage() for record in caplog.records if "unreadable" in record.getMessage()]
    assert len(lines) == 1 and "1 of 9 so far" in lines[0] and str(coco.picture("train", 4)) in lines[0]


def test_missing_images_are_an_error_or_left_out(coco, caplog):
    coco.picture("train", 2).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 9 images .* \['2.png'\].*on_missing=skip"):
        CocoDataModule(coco.root).setup("fit")
    data = CocoDataModule(coco.root, on_missing="skip")
    data.setup("fit")
    assert len(data.train_set) == 8
    assert data.train_set.annotations.faults["missing images left out"] == (1, "2.png")


def test_all_images_missing_is_an_error_also_when_skipping(coco):
    for index in range(9):
        coco.picture("train", index).unlink()
    with pytest.raises(FileNotFoundError, match="9 of 9 images"):
        CocoDataModule(coco.root, on_missing="skip").setup("fit")


def test_nothing_to_train_on_is_an_error(coco):
    coco.write("train", {**coco.read("train"), "annotations": []})
    with pytest.raises(ValueError, match="no box to train on"):
        CocoDataModule(coco.root).setup("fit")


def test_fewer_images_than_a_batch_is_an_error(coco):
    data = CocoDataModule(coco.root, batch_size=10, num_workers=0)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"9 images are fewer than 1 processes times batch_size=10"):
        data.train_dataloader()


def test_the_summary_is_one_line_shown_once_on_rank_zero(coco, capfd):
    content = coco.read("train")
    content["annotations"] += [
        {"image_id": 100, "category_id": 9, "bbox": [1, 2, 3, 4]},
        {"image_id": 100, "category_id": 1, "bbox": [1, 2, 0, 4]},
    ]
    coco.write("train", content)
    data = CocoDataModule(coco.root)
    data.setup("fit")
    data.setup("fit")
    line = data.train_set.annotations.summary()
    assert "9 images (0 without objects), 10 boxes (0 crowds)" in line
    assert "1 boxes of an unknown category id left out" in line and "1 boxes without area" in line
    out, err = capfd.readouterr()
    assert err.splitlines().count(line) == 1 and out == ""

    other = CocoDataModule(coco.root)
    other.trainer = SimpleNamespace(global_rank=1, world_size=2, local_rank=1, num_devices=2)
    other.setup("fit")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("workers", [0, 2])
def test_cache_mode_gives_the_same_training(coco, workers):
    plain = fit(coco).trained
    assert fit(coco, data={"cache_mode": True, "num_workers": workers}).trained == plain


def test_prediction_over_a_folder_and_over_files(coco):
    for images in (str(coco.root / "val2017"), [str(coco.picture("val", i)) for i in range(5)]):
        watch, data = Watch(), CocoDataModule(coco.root, predict_images=images, val_batch_size=3, **SMALL)
        trainer(coco.root).predict(watch, data)
        assert watch.predicted == [[0, 1, 2], [3, 4]]
    assert data.predict_set.path(1) == coco.picture("val", 1)
    with pytest.raises(ValueError, match="predict_images is not given"):
        CocoDataModule(coco.root).setup("predict")


def test_explicit_folders_need_no_root(coco):
    data = CocoDataModule(val_folder=coco.root / "val2017", val_annotations=coco.file("val"), **SMALL)
    watch = Watch()
    trainer(coco.root).validate(watch, data, verbose=False)
    assert len(watch.validated) == 3 and data.num_classes == 4
    with pytest.raises(ValueError, match="Neither root nor train_folder"):
        data.setup("fit")
    with pytest.raises(ValueError, match="belong together"):
        CocoDataModule(train_folder=coco.root)
    with pytest.raises(FileNotFoundError, match="No annotation file at"):
        _ = CocoDataModule(coco.root / "elsewhere").num_classes


def test_class_names_without_annotations_are_none_and_training_says_what_is_missing(coco):
    assert CocoDataModule(predict_images=str(coco.root / "val2017")).class_names is None
    elsewhere = CocoDataModule(coco.root / "elsewhere")
    assert elsewhere.class_names is None
    with pytest.raises(FileNotFoundError, match=r"instances_train2017\.json: no such annotation file"):
        elsewhere.setup("fit")


def test_loading_leaves_the_global_random_state_alone(coco):
    data = CocoDataModule(coco.root, **{**SMALL, "num_workers": 1})
    data.setup("fit")
    before = torch.get_rng_state()
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(before, torch.get_rng_state()) and len(batch["targets"]) == 2


def test_a_huge_picture_in_the_validation_set_is_reported(coco, caplog):
    Image.new("RGB", (200, 200)).save(coco.picture("val", 1))
    data = CocoDataModule(coco.root, max_pixels=30_000, **SMALL)
    with caplog.at_level(logging.WARNING, logger="lightning_xai.data.coco"):
        trainer(coco.root).validate(Watch(), data, verbose=False)
    assert any("200×200 is more than max_pixels=30000" in record.getMessage() for record in caplog.records)


def test_published_sizes_are_the_defaults():
    data = CocoDataModule("anywhere")
    assert data.training_transform.scales == SCALES and data.training_transform.max_size == 1333
    assert (data.evaluation_transform.size, data.evaluation_transform.max_size) == (800, 1333)


@pytest.mark.skipif(not BLOOD_CELLS.is_dir(), reason="the blood cell photographs are not beside this checkout")
def test_real_photographs():
    data = CocoDataModule(BLOOD_CELLS, scales=(240, 320), max_size=480, num_workers=0, batch_size=4)
    data.setup("fit")
    assert data.class_names == ["", "RBC", "WBC", "Platelets"]
    assert len(data.train_set) == 292 and len(data.val_set) == 72
    assert data.train_set.annotations.faults["boxes without area inside their image not trained on"][0] == 2
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batches = iter(loader)
        for _ in range(4):
            batch = next(batches)
            for image, mask, target in zip(batch["images"], batch["mask"], batch["targets"], strict=True):
                height, width = target["size"].tolist()
                assert (~mask).sum() == height * width and image[:, mask].sum() == 0
                boxes = target["boxes"]
                assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()
                assert (boxes <= torch.tensor([width, height] * 2) + 1e-3).all()
    assert data.train_set.news() is None and data.val_set.news() is None


def test_batches_can_be_padded_to_a_multiple(coco):
    data = CocoDataModule(coco.root, **SMALL, pad_to_multiple=32)
    data.setup("validate")
    for batch in data.val_dataloader():
        assert all(side % 32 == 0 for side in batch["images"].shape[2:])
        for mask, target in zip(batch["mask"], batch["targets"], strict=True):
            assert int((~mask).sum()) == int(target["size"].prod())
