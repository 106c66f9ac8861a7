import json

import numpy as np
import pytest
from PIL import Image

from lightning_xai.data.image_generators import FolderImages


@pytest.fixture
def folder(tmp_path):
    """Two images of one prompt, and a line without its file."""
    for seed, suffix in ((1, "png"), (2, "jpg")):
        Image.new("RGB", (6, 4), (seed * 100, 0, 0)).save(tmp_path / f"{seed}.{suffix}")
    lines = [
        {"prompt": "a cat", "seed": seed, "path": path} for seed, path in ((1, "1.png"), (2, "2.jpg"), (3, "3.png"))
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    return tmp_path


def test_images_are_found_by_prompt_and_seed(folder):
    second, first = FolderImages(str(folder)).generate(["a cat", "a cat"], [2, 1])
    assert first.shape == (4, 6, 3) and first.dtype == np.uint8
    assert first[0, 0].tolist() == [100, 0, 0] and abs(int(second[0, 0, 0]) - 200) < 4


def test_another_size_is_made_only_where_it_is_asked_for(folder):
    (image,) = FolderImages(str(folder)).generate(["a cat"], [1], size=(8, 2))
    assert image.shape == (8, 2, 3) and image[3, 1].tolist() == [100, 0, 0]


def test_missing_images_are_named(folder):
    images = FolderImages(str(folder))
    with pytest.raises(
        FileNotFoundError, match=r"2 of 3 images are missing: 'a cat' with seed 3 \(file 3.png\), 'a dog'"
    ):
        images.check(["a cat", "a cat", "a dog"], [1, 3, 1])
    assert images.has("a cat", 1) and not images.has("a cat", 3) and not images.has("a dog", 1)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        FolderImages(str(folder / "none"))
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="which `prompt` and `seed` made which `path`"):
        FolderImages(str(folder / "empty"))


@pytest.mark.parametrize(
    "line, message",
    [
        ("no JSON", "should be a JSON object with prompt, seed and path"),
        ('{"prompt": "a", "seed": "x", "path": "1.png"}', "should be a JSON object"),
        ('{"prompt": "a", "seed": 1, "path": "/etc/passwd"}', "should lie below the folder"),
        ('{"prompt": "a cat", "seed": 1, "path": "2.jpg"}', "has a second file '2.jpg'"),
    ],
)
def test_a_broken_index_is_named_with_its_line(folder, line, message):
    with (folder / "manifest.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=rf"line 7.*{message}"):
        FolderImages(str(folder))
