"""Pictures with captions in COCO's layout."""

import json

import numpy as np
import pytest
from PIL import Image

from lightning_xai.data.captioned_pictures import CaptionedPicturesModule, read_captions

IMAGES = [(7, "b.jpg"), (3, "a.png"), (9, "c.png")]
SAID = [(7, " a zebra "), (3, "a cat"), (3, "one cat on a mat"), (9, ""), (3, "it sleeps")]


@pytest.fixture
def root(tmp_path):
    for part in ("train", "val"):
        folder = tmp_path / f"{part}2017"
        folder.mkdir()
        for number, name in IMAGES:
            pixels = np.full((40, 60, 3), number, np.uint8)
            pixels[:, 30:] = 200
            Image.fromarray(pixels).save(folder / name)
        content = {
            "images": [{"id": number, "file_name": name} for number, name in IMAGES],
            "annotations": [{"image_id": number, "caption": text, "id": i} for i, (number, text) in enumerate(SAID)],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"captions_{part}2017.json").write_text(json.dumps(content))
    return tmp_path


def test_pictures_with_captions_by_id(root):
    module = CaptionedPicturesModule(root, image_size=32, batch_size=2, num_workers=0)
    (batch,) = module.val_dataloader()
    assert batch["index"].tolist() == [3, 7] and batch["texts"] == ("a cat", "a zebra")  # 9 has no caption
    assert batch["images"].shape == (2, 3, 32, 32)
    assert batch["images"][1, :, :, 0].float().mean() < 20 < 180 < batch["images"][1, :, :, -1].float().mean()


def test_training_draws_a_caption_by_epoch_and_picture(root):
    module = CaptionedPicturesModule(root, image_size=32, num_workers=0)
    said = [module.train_set[epoch, 0][1]["text"] for epoch in range(20)]
    assert set(said) == {"a cat", "one cat on a mat", "it sleeps"}
    again = CaptionedPicturesModule(root, image_size=32, num_workers=0)
    assert said == [again.train_set[epoch, 0][1]["text"] for epoch in range(20)]


def test_an_unreadable_picture_is_replaced(root):
    (root / "val2017" / "a.png").write_bytes(b"no picture")
    module = CaptionedPicturesModule(root, image_size=32, num_workers=0, max_bad_images=1)
    assert module.val_set[0][1]["text"] == "a zebra"


def test_errors(root):
    file = root / "annotations" / "captions_val2017.json"
    (root / "val2017" / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 pictures of .* are not in .*val2017 \(first: 'b.jpg'\)"):
        _ = CaptionedPicturesModule(root).val_set
    with pytest.raises(ValueError, match="neither root nor val_folder and val_annotations"):
        _ = CaptionedPicturesModule().val_set
    with pytest.raises(FileNotFoundError, match="no such file; give one in the layout of captions_val2017"):
        read_captions(root / "none.json")
    for content, said in (("{", "JSONDecodeError"), ('{"images": []}', "KeyError: 'annotations'"), ("[]", "TypeError")):
        file.write_text(content)
        with pytest.raises(ValueError, match=f"no captions in COCO's layout.*{said}"):
            read_captions(file)
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": "a"}], "annotations": []}))
    with pytest.raises(ValueError, match="none of its 1 images has a caption"):
        read_captions(file)
