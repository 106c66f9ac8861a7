import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lightning_xai.data.debugset import write_debugset
from lightning_xai.data.debugset_manifest import Entry, manifest_text, read_manifest
from lightning_xai.data.image_generators import ImageGenerator


class Painter(ImageGenerator):
    """Paints every image in the colour (seed, length of the prompt, length of the negative prompt)."""

    provider = "painter"

    def __init__(self, fails_after=None):
        self.painted, self.fails_after = [], fails_after

    def generate(self, prompts, seeds, negative_prompts=None, size=None):
        images = []
        for prompt, seed, negative in zip(prompts, seeds, negative_prompts, strict=True):
            if self.fails_after is not None and len(self.painted) >= self.fails_after:
                raise RuntimeError("out of paint")
            self.painted.append(prompt)
            images.append(np.full((*size, 3), (seed, len(prompt), len(negative)), dtype=np.uint8))
        return images


@pytest.fixture
def picked(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4), (len(name), 0, 0)).save(tmp_path / name)
    return [
        Entry(f"cat/s_{i}.png", "cat", "S-Random", i, source=str(tmp_path / name))
        for i, name in enumerate(["a.png", "b.png"])
    ]


PROMPTED = [
    Entry(f"dog/g_{i}.png", "dog", "G-LLM", i, prompt="a dog" + "!" * i, negative_prompt="cats", seed=i)
    for i in range(5)
]


def test_a_set_is_an_image_folder_with_a_manifest(tmp_path, picked):
    out = write_debugset([*picked, *PROMPTED], tmp_path / "set", ["cat", "dog", "owl"], Painter(), size=(3, 5))
    assert sorted(path.name for path in out.iterdir()) == ["cat", "dog", "manifest.jsonl", "owl"]
    assert (out / "cat/s_0.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    image = np.array(Image.open(out / "dog/g_2.png"))
    assert image.shape == (3, 5, 3) and image[0, 0].tolist() == [2, 7, 4]
    assert read_manifest(out) == [*picked, *PROMPTED]
    first = json.loads((out / "manifest.jsonl").read_text().splitlines()[0])
    assert first == {
        "path": "cat/s_0.png", "class": "cat", "strategy": "S-Random", "rank": 0, "source": str(tmp_path / "a.png"),
    }  # fmt: skip
    assert not (tmp_path / "set.partial").exists()


def test_linked_images_lead_to_their_sources(tmp_path, picked, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entries = [replace(entry, source=entry.source.removeprefix(f"{tmp_path}/")) for entry in picked]
    out = write_debugset(entries, "below/set", ["cat"], files="symlink")
    assert (out / "cat/s_1.png").is_symlink()
    assert (out / "cat/s_1.png").resolve() == (tmp_path / "b.png").resolve()


def test_an_interrupted_drawing_goes_on_where_it_ended(tmp_path):
    painter = Painter(fails_after=4)
    with pytest.raises(RuntimeError, match="out of paint"):
        write_debugset(PROMPTED, tmp_path / "set", ["dog"], painter, batch_size=2, size=(2, 2))
    assert not (tmp_path / "set").exists() and painter.painted == [e.prompt for e in PROMPTED[:4]]
    again = Painter()
    out = write_debugset(PROMPTED, tmp_path / "set", ["dog"], again, batch_size=2, size=(2, 2))
    assert again.painted == ["a dog!!!!"] and len(list((out / "dog").iterdir())) == 5


def test_a_half_drawn_set_of_other_entries_is_begun_anew(tmp_path):
    with pytest.raises(RuntimeError):
        write_debugset(PROMPTED, tmp_path / "set", ["dog"], Painter(fails_after=4), batch_size=2, size=(2, 2))
    others = [replace(entry, seed=entry.seed + 10) for entry in PROMPTED]
    painter = Painter()
    out = write_debugset(others, tmp_path / "set", ["dog"], painter, size=(2, 2))
    assert len(painter.painted) == 5 and np.array(Image.open(out / "dog/g_0.png"))[0, 0, 0] == 10


def test_the_same_set_is_left_and_another_one_kept_unless_told(tmp_path):
    out = write_debugset(PROMPTED[:2], tmp_path / "set", ["dog"], Painter(), size=(2, 2))
    painter = Painter()
    write_debugset(PROMPTED[:2], out, ["dog"], painter, size=(2, 2))
    assert painter.painted == []
    (out / "dog/g_1.png").unlink()
    write_debugset(PROMPTED[:2], out, ["dog"], painter, size=(2, 2))
    assert painter.painted == ["a dog!"] and (out / "dog/g_1.png").is_file()
    with pytest.raises(
        FileExistsError, match="another debug set, which `overwrite` would replace; give another folder"
    ):
        write_debugset(PROMPTED[:3], out, ["dog"], painter, size=(2, 2))
    write_debugset(PROMPTED[2:3], out, ["dog"], painter, size=(2, 2), overwrite=True)
    assert [path.name for path in (out / "dog").iterdir()] == ["g_2.png"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="other files"):
        write_debugset(PROMPTED, tmp_path / "thesis", ["dog"], painter, size=(2, 2), overwrite=True)
    assert (tmp_path / "thesis/chapter1.tex").read_text() == "precious"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"class_name": "owl"}, "class 'owl' is none of cat, dog"),
        ({"prompt": "both"}, "either a source to copy or a prompt"),
        ({"source": None, "prompt": "x"}, "prompt 'x' needs an image generator"),
        ({"path": "cat/s_1.png"}, "2 images of the debug set would be 'cat/s_1.png'"),
        ({"source": "gone.png"}, "gone.png: no such file any more"),
    ],
)
def test_entries_that_cannot_be_written_are_named(tmp_path, picked, change, message):
    with pytest.raises((ValueError, OSError), match=message):
        write_debugset([replace(picked[0], **change), picked[1]], tmp_path / "set", ["cat", "dog"])
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("image", [np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 4), np.uint8)])
def test_a_generator_s_odd_images_are_refused(tmp_path, image):
    painter = Painter()
    painter.generate = lambda prompts, *_: [image] * len(prompts)
    with pytest.raises(ValueError, match=r"painter gave .* an image should be uint8 \(h, w, 3\)"):
        write_debugset(PROMPTED, tmp_path / "set", ["dog"], painter)


@pytest.mark.parametrize(
    "line", ["{", '{"path": "a.png"}', "[1]", '{"path": "../a", "class": "a", "strategy": "s", "rank": 0}']
)
def test_a_broken_manifest_is_named_with_its_line(tmp_path, line):
    (tmp_path / "manifest.jsonl").write_text(manifest_text(PROMPTED[:1]) + line + "\n")
    with pytest.raises(ValueError, match=r"manifest\.jsonl, line 2"):
        read_manifest(tmp_path)
