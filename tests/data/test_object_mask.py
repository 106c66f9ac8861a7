"""Masks as files: written and read alike, and every file that is no mask is refused by name."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_xai.data.object_mask import read_object_mask, write_object_mask
from lightning_xai.data.picture_file import UnreadablePicture

MASK = torch.tensor([[0, 1, 1], [-1, 0, 1]], dtype=torch.int8)


def test_written_and_read_alike(tmp_path):
    write_object_mask(tmp_path / "a" / "b.png", MASK)
    assert torch.equal(read_object_mask(tmp_path / "a" / "b.png", (2, 3)), MASK)
    assert np.unique(np.array(Image.open(tmp_path / "a" / "b.png"))).tolist() == [0, 128, 255]


@pytest.mark.parametrize("mode, level", [("L", 1), ("1", 255), ("P", 1)])
def test_other_ways_to_store_two_values(tmp_path, mode, level):
    picture = Image.fromarray(np.uint8([[0, level], [level, level]]))
    if mode == "P":
        picture.putpalette([0, 0, 0, 200, 30, 30])
    picture = picture.convert(mode) if mode == "1" else picture
    assert picture.mode == mode
    picture.save(tmp_path / "mask.png")
    assert read_object_mask(tmp_path / "mask.png", (2, 2)).tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    "pixels, complaint",
    [
        (np.uint8([[0, 255, 7]]), r"holds the values \[0, 7, 255\]"),
        (np.uint8([[0, 255, 1]]), r"holds the values \[0, 1, 255\]"),
        (np.uint8([[0, 255]]), "a mask of 2×1 for a picture of 3×1"),
        (np.zeros((1, 3, 3), np.uint8), "mode is RGB"),
    ],
)
def test_files_that_are_no_masks(tmp_path, pixels, complaint):
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    with pytest.raises(UnreadablePicture, match=rf"mask.png: .*{complaint}"):
        read_object_mask(tmp_path / "mask.png", (1, 3))


def test_a_damaged_file_and_strange_values(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"no picture")
    with pytest.raises(UnreadablePicture, match=r"mask\.png: cannot be read as a mask"):
        read_object_mask(tmp_path / "mask.png", (1, 3))
    with pytest.raises(ValueError, match="a mask is"):
        write_object_mask(tmp_path / "mask.png", 2 * MASK)
