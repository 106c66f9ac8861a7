"""`lightning-xai explain`, as a user types it, on tiny networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_xai.cli import main

DETECTOR = {
    "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
    "model": {
        "class_path": "lightning_xai.tasks.detection.DetectionTask",
        "init_args": {
            "threshold": 0.01,
            "net": {
                "class_path": "lightning_xai.nets.deformable_detr.DeformableDETR",
                "init_args": {
                    "num_classes": 6,
                    "backbone": "timm:resnet10t",
                    "backbone_args": {"channels": [8, 8, 16, 16], "stem_width": 8},
                    "hidden_dim": 32,
                    "num_heads": 2,
                    "num_feature_levels": 2,
                    "out_strides": [16, 32],
                    "num_encoder_layers": 1,
                    "num_decoder_layers": 2,
                    "dim_feedforward": 32,
                    "num_queries": 8,
                },
            },
        },
    },
    "data": {
        "class_path": "lightning_xai.data.embedded_detection.EmbeddedDetectionModule",
        "init_args": {"recipe": {"height": 64, "width": 64, "max_size": 40}, "n_train": 16, "n_val": 4},
    },
}
RECIPE = {"height": 32, "width": 32, "max_size": 14, "max_objects": 2}
PAIRS = {
    "trainer": DETECTOR["trainer"],
    "model": {
        "class_path": "lightning_xai.tasks.image_text.ImageTextTask",
        "init_args": {
            "net": {
                "class_path": "lightning_xai.nets.clip.new_clip",
                "init_args": {
                    "vocabulary": ["a", "red", "star", "blue", "circle"],
                    "image_size": 32,
                    "patch_size": 8,
                    "width": 16,
                    "layers": 2,
                    "heads": 2,
                    "text_width": 16,
                    "text_layers": 2,
                    "text_heads": 2,
                    "embed_dim": 8,
                    "context": 8,
                },
            },
        },
    },
    "data": {
        "class_path": "lightning_xai.data.embedded_captions.EmbeddedCaptionsModule",
        "init_args": {"recipe": RECIPE, "n_train": 8, "n_val": 4},
    },
}


def written(folder: Path, name: str, config: dict, seed: int = 3) -> list[str]:
    """A configuration and a checkpoint of random weights, as arguments."""
    from lightning_xai.cli.training import TrainingCLI

    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"seed_everything": seed, **config}))
    cli = TrainingCLI(["--config", str(file), "--run_dir", str(folder / name)], run=False)
    torch.save({"state_dict": cli.model.state_dict()}, folder / f"{name}.ckpt")
    return ["--config", str(file), "--ckpt", str(folder / f"{name}.ckpt"), "--run_dir", str(folder / name)]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return written(tmp_path_factory.mktemp("detector"), "detector", DETECTOR)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return written(tmp_path_factory.mktemp("pairs"), "pairs", PAIRS)


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 96, 3), dtype=np.uint8)).save(file)
    return file


def failing(words, capsys) -> str:
    """What a command says that ends with an error."""
    with pytest.raises(SystemExit) as error:
        main(["explain", *words])
    if isinstance(error.value.code, int):
        return capsys.readouterr().err
    return str(error.value.code)


def test_a_picture_of_a_detector(detector, photo, capsys):
    methods = ["--method", "raw_attention", "--method", "generic_relevance:normalise=false", "--method", "rollout"]
    assert main(["explain", *detector, "--input", str(photo), *methods, "--limit", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = Path(detector[-1]) / "explanations"
    assert lines[-2:] == [str(folder / "photo.png"), str(folder / "photo.npz")]
    assert len(lines[:-2]) == 2 and all(line.startswith("query ") for line in lines[:-2])
    picture = np.asarray(Image.open(folder / "photo.png"))
    assert picture.shape[1] > 5 * 320 and picture.std() > 5
    with np.load(folder / "photo.npz", allow_pickle=False) as found:
        ours = "generic_relevance:normalise=false"
        assert found["methods"].tolist() == ["raw_attention", ours, "rollout"]
        assert (
            found["names"].tolist() == lines[:-2] and found["scores"].shape == (2,) and found["boxes"].shape == (2, 4)
        )
        assert found["images"].shape == (1, 48, 96, 3)
        for method in found["methods"]:
            relevance, grid = found[f"{method}/image/relevance"], found[f"{method}/image/map"]
            assert relevance.shape == (2, 3 * 6 + 2 * 3) and grid.shape == (2, 3, 6)
            assert np.isfinite(relevance).all() and relevance.any(1).all()
            np.testing.assert_allclose(grid.sum((1, 2)), relevance.sum(1), rtol=1e-4)


def test_targets_of_a_detector(detector, photo, tmp_path, capsys):
    for target, expected in (
        ("query:3", "query 3: "),
        ("query:3:star", "query 3: star "),
        ("class:heart", "heart "),
        ("class:0", "circle "),
        ("kept", "query "),
    ):
        words = ["--input", str(photo), "--target", target, "--out", str(tmp_path / "out.v1")]
        assert main(["explain", *detector, *words]) == 0
        assert expected in capsys.readouterr().out
    assert (tmp_path / "out.v1.png").is_file() and (tmp_path / "out.v1.npz").is_file()


def test_a_sample_of_the_validation_data_by_both_names_of_the_checkpoint(detector, capsys):
    words = [word.replace("--ckpt", "--ckpt_path") for word in detector]
    assert main(["explain", *words, "--index", "2", "--out", str(Path(words[-1]) / "explanations" / "val_2.png")]) == 0
    assert (Path(detector[-1]) / "explanations" / "val_2.npz").is_file()


def test_a_picture_with_texts(pairs, photo, capsys):
    texts = ["--text", "a red star", "--text", "circle"]
    methods = ["--method", "generic_relevance", "--method", "rollout"]
    assert main(["explain", *pairs, "--input", str(photo), *texts, *methods]) == 0
    first, second, _, numbers = capsys.readouterr().out.splitlines()
    assert first.startswith("'a red star': cosine ") and second.startswith("'circle': cosine ")
    with np.load(numbers, allow_pickle=False) as found:
        pieces = found["generic_relevance/text/pieces"]
        assert pieces.tolist() == [
            ["<|startoftext|>", "a ", "red ", "star ", "<|endoftext|>"],
            ["<|startoftext|>", "circle ", "<|endoftext|>", "", ""],
        ]
        assert found["generic_relevance/text/relevance"].shape == (2, 8)
        assert found["rollout/image/map"].shape == (2, 4, 4)
        assert found["samples"].tolist() == [0, 1] and set(found["streams"]) == {"image", "text"}
    alone = ["explain", *pairs, "--input", str(photo), "--text", "a red star", "--out", str(photo.with_name("alone"))]
    assert main(alone) == 0
    with np.load(numbers) as both, np.load(photo.with_name("alone.npz")) as one:
        for key in ("generic_relevance/image/relevance", "generic_relevance/text/relevance", "scores"):
            np.testing.assert_allclose(both[key][:1], one[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--method", "magic"], "no explanation method 'magic'; choose from raw_attention, rollout"),
        (["--method", "rollout:layer=3"], "the method rollout has no option 'layer'; its options are start_layer"),
        (["--method", "rollout:start"], "'start' is no option=value, such as rollout:start_layer=1"),
        (["--method", "raw_attention:layer=7"], "layer is 7, but query reads query in layers 0 to 1"),
        (
            ["--target", "best"],
            "no target 'best'; this task explains predicted, kept, truth, class:NAME or class:INDEX",
        ),
        (["--target", "class:cow"], "no class 'cow'; they go from 0 to 5: circle, square"),
        (["--target", "query:8"], "no query '8'; the network's go from 0 to 7"),
        (["--target", "truth"], "no query of these images is chosen by 'truth': they have no annotated objects"),
        (["--limit", "0"], "--limit 0 must be at least 1"),
        (["--text", "a star"], "reads no text: leave --text out"),
    ],
)
def test_what_there_is_not(detector, photo, capsys, words, said):
    assert said in failing([*detector, "--input", str(photo), *words], capsys)


def test_faulty_pictures_places_and_checkpoints(detector, photo, tmp_path, capsys):
    assert f"{tmp_path / 'none.png'}: cannot be read" in failing(
        [*detector, "--input", str(tmp_path / "none.png")], capsys
    )
    (tmp_path / "broken.png").write_bytes(photo.read_bytes()[:200])
    assert "broken.png" in failing([*detector, "--input", str(tmp_path / "broken.png")], capsys)
    assert "the validation data has the samples 0 to 3" in failing([*detector, "--index", "4"], capsys)
    assert "one of the arguments --input --index is required" in failing(detector, capsys)
    missing = [*detector[:2], "--ckpt", str(tmp_path / "none.ckpt"), "--input", str(photo)]
    assert "none.ckpt': no such file" in failing(missing, capsys)
    file = tmp_path / "other.ckpt"
    other = [*detector[:2], "--ckpt", str(file), "--input", str(photo)]
    file.write_text("no weights")
    assert "other.ckpt'" in failing(other, capsys)
    torch.save({"model": {}}, file)
    assert "other.ckpt' is no checkpoint of this project" in failing(other, capsys)
    weights = torch.load(detector[3], weights_only=True)["state_dict"]
    weights["net.transformer.level_embed"] = torch.zeros(3, 32)
    torch.save({"state_dict": weights | {"net.more": torch.zeros(1)}}, file)
    said = failing(other, capsys)
    assert "other.ckpt' is of another network than the configuration's: 1 tensors unexpected (first: net.more)" in said
    assert "1 tensors of another shape (first: net.transformer.level_embed)" in said


def test_faulty_texts(pairs, photo, capsys):
    said = failing([*pairs, "--input", str(photo), "--text", "a red star " * 5], capsys)
    assert "has 17 tokens with its start and end, but only 8 fit: shorten it" in said
    said = failing([*pairs, "--input", str(photo), "--text", "a green star"], capsys)
    assert "has the word 'green', but this network reads only a, red, star" in said
    assert "reads pictures with a text: give --text" in failing([*pairs, "--input", str(photo)], capsys)
    assert "--text goes with --input" in failing([*pairs, "--index", "0", "--text", "a star"], capsys)


def test_a_task_or_network_that_cannot_be_explained(tmp_path, photo, capsys):
    config = json.loads(json.dumps(DETECTOR))
    config["model"] = {"class_path": "pytorch_lightning.demos.boring_classes.BoringModel"}
    words = written(tmp_path, "boring", config)
    said = failing([*words, "--input", str(photo)], capsys)
    assert "BoringModel cannot be explained: it lacks net, prepare(...), explained(...), prediction(...)" in said
    config["model"] = {"class_path": DETECTOR["model"]["class_path"], "init_args": {"net": "torch.nn.Identity"}}
    words = written(tmp_path, "undeclared", config)
    said = failing([*words, "--input", str(photo)], capsys)
    assert "DetectionTask cannot be explained: it lacks net.sites(...), net.streams(...). A task has" in said
