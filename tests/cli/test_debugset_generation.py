"""The commands that draw images from prompts, and those that let another machine draw them."""

import json

import numpy as np
import pytest
from PIL import Image

from lightning_xai.cli import main
from lightning_xai.data.concepts import ClassConcepts, write_concepts
from lightning_xai.data.debugset_manifest import read_entries, read_manifest
from lightning_xai.data.image_generators import ImageGenerator


class PromptPattern(ImageGenerator):
    """Noise from the prompts' letters and the seed."""

    def __init__(self, contrast: int = 255):
        self.contrast = contrast

    @property
    def provider(self) -> str:
        return f"pattern {self.contrast}"

    def generate(self, prompts, seeds, negative_prompts=None, size=None):
        return [
            np.random.default_rng([*map(ord, prompt + negative), seed])
            .integers(0, self.contrast, (*(size or (8, 8)), 3))
            .astype(np.uint8)
            for prompt, seed, negative in zip(prompts, seeds, negative_prompts, strict=True)
        ]


@pytest.fixture
def names(tmp_path):
    (tmp_path / "classes.txt").write_text("living_room\noffice\n")
    return ["--class_names", str(tmp_path / "classes.txt")]


@pytest.fixture
def concepts(tmp_path):
    given = {name: ClassConcepts({"lamp": 2.0, "desk": 1.0}, {"window": 1.0}) for name in ("living_room", "office")}
    write_concepts(tmp_path / "concepts.json", given)
    return ["--concepts", str(tmp_path / "concepts.json"), "--learner", "ClassNameToken"]


PATTERN = ["--generator", f"{__name__}.PromptPattern", "--generator.contrast", "100"]


def test_an_own_generator_draws_what_people_named(tmp_path, names, concepts, capsys):
    out = tmp_path / "set"
    words = ["debugset", "g-tg-human-prompt", *names, *concepts, *PATTERN, "--count", "3", "--size", "[4, 6]"]
    assert main([*words, "--out", str(out)]) == 0
    assert f"6 images of 2 classes: {out}" in capsys.readouterr().out
    entries = read_manifest(out)
    assert [entry.prompt for entry in entries[3:]] == ["a office with a lamp"] * 2 + ["a office with a desk"]
    assert {(entry.provider, entry.negative_prompt) for entry in entries} == {
        ("pattern 100; words: class names", "window")
    }
    image = np.array(Image.open(out / entries[3].path))
    expected = PromptPattern(100).generate([entries[3].prompt], [entries[3].seed], ["window"], (4, 6))[0]
    assert np.array_equal(image, expected) and not np.array_equal(image, np.array(Image.open(out / entries[4].path)))
    assert main([*words, "--out", str(tmp_path / "again")]) == 0
    assert (out / "manifest.jsonl").read_text() == (tmp_path / "again/manifest.jsonl").read_text()


def test_prompts_go_out_and_images_come_in(tmp_path, names, capsys):
    file = tmp_path / "away/prompts.jsonl"
    (tmp_path / "listed.yaml").write_text("living_room: [sofa, lamp]\noffice: [desk]\n")
    lister = ["--lister", "ConceptFile", "--lister.file", str(tmp_path / "listed.yaml")]
    words = [*names, *lister, "--count", "2"]
    assert main(["debugset", "export-prompts", "G-LLM-prompt", *words, "--out", str(file)]) == 0
    assert "debugset import" in capsys.readouterr().out
    prompts = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["prompt"] for line in prompts] == [
        "a living room with a sofa", "a living room with a lamp", "a office with a desk", "a office with a desk",
    ]  # fmt: skip
    images = tmp_path / "images"
    for number, line in enumerate(prompts[:3]):  # what the other machine does
        (images / line["path"]).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 5), (number, 0, 0)).save(images / line["path"])
    taken = ["debugset", "import", "--prompts", str(file), "--images", str(images), "--out", str(tmp_path / "set")]
    with pytest.raises(
        SystemExit, match=r"1 of 4 images are missing: 'a office with a desk' with seed \d+ \(file office/"
    ):
        main(taken)
    assert not (tmp_path / "set").exists() and not (tmp_path / "set.partial").exists()
    assert main([*taken, "--skip_missing", "--provider", "SD 2.1"]) == 0
    said = capsys.readouterr()
    assert "1 of 4 prompts have no image" in said.err and "3 images of 2 classes" in said.out
    entries = read_manifest(tmp_path / "set")
    assert [entry.provider for entry in entries] == ["SD 2.1; concepts: listed.yaml"] * 3
    assert [np.array(Image.open(tmp_path / "set" / e.path))[0, 0, 0] for e in entries] == [0, 1, 2]
    assert [e.seed for e in entries] == [e.seed for e in read_entries(file)[:3]]


def test_images_made_elsewhere_are_a_generator(tmp_path, names):
    made = tmp_path / "made"
    assert main(["debugset", "G-LLM", *names, *PATTERN, "--count", "2", "--out", str(made)]) == 0
    folder = ["--generator", "FolderImages", "--generator.folder", str(made)]
    assert main(["debugset", "G-LLM", *names, *folder, "--count", "1", "--out", str(tmp_path / "set")]) == 0
    (first, *_), (same, *_) = read_manifest(made), read_manifest(tmp_path / "set")
    assert (same.prompt, same.seed, same.provider) == (first.prompt, first.seed, "folder")
    images = [np.array(Image.open(root / first.path)) for root in (made, tmp_path / "set")]
    assert np.array_equal(*images)
    with pytest.raises(SystemExit, match="2 of 6 images are missing"):
        main(["debugset", "G-LLM", *names, *folder, "--count", "3", "--out", str(tmp_path / "more")])


def test_options_from_a_file(tmp_path, names):
    (tmp_path / "set.yaml").write_text(
        f"class_names: {names[1]}\ncount: 1\nout: {tmp_path / 'set'}\n"
        f"generator: {{class_path: {__name__}.PromptPattern, init_args: {{contrast: 9}}}}\n"
    )
    assert main(["debugset", "G-LLM", "--config", str(tmp_path / "set.yaml"), "--seed", "4"]) == 0
    assert {entry.provider for entry in read_manifest(tmp_path / "set")} == {"pattern 9"}


@pytest.mark.parametrize(
    "words, message",
    [
        (["G-LLM"], r"G-LLM needs an image generator: give `--generator FolderImages .*export-prompts G-LLM"),
        (
            ["G-LLM", "--generator", "FolderImages", "--generator.folder", "none"],
            "debugset G-LLM: none: no such folder",
        ),
        (["G-LLM-prompt", *PATTERN], "needs a concept lister"),
        (["G-TG", *PATTERN], "needs a token learner"),
        (["G-TG", *PATTERN, "--learner", "EmbeddingFolder", "--learner.folder", "none"], "none: no such folder"),
        (["G-TG-human-prompt", *PATTERN, "--learner", "ClassNameToken"], "needs human concepts"),
        (["export-prompts"], "the strategy comes first, one of G-LLM"),
        (["export-prompts", "S-Random"], "'S-Random' was given"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_written(tmp_path, names, words, message):
    with pytest.raises(SystemExit, match=message):
        main(["debugset", *words, *names, "--out", str(tmp_path / "set")])
    assert not (tmp_path / "set").exists() and not (tmp_path / "set.partial").exists()


def test_classes_that_can_be_no_folders_are_named(tmp_path):
    (tmp_path / "classes.txt").write_text("../office\n")
    words = ["--class_names", str(tmp_path / "classes.txt"), "--count", "1", "--out", str(tmp_path / "deep/set")]
    with pytest.raises(SystemExit, match=r"class '\.\./office' cannot be the name of a folder"):
        main(["debugset", "G-LLM", *words, *PATTERN])
    assert not (tmp_path / "deep").exists()


def test_concepts_of_unknown_classes_are_named(tmp_path, names):
    write_concepts(tmp_path / "c.json", {"kitchen": ClassConcepts({"pan": 1.0})})
    words = [
        "G-TG-human-prompt",
        *names,
        *PATTERN,
        "--learner",
        "ClassNameToken",
        "--concepts",
        str(tmp_path / "c.json"),
    ]
    with pytest.raises(SystemExit, match="kitchen are none of living_room, office"):
        main(["debugset", *words, "--out", str(tmp_path / "set")])
