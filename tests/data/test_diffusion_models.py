import numpy as np
import pytest
import torch
from PIL import Image

from lightning_xai.data.diffusion_models import DiffusersImages, TextualInversion

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Stable Diffusion of 16x16 pixels with random weights."""
    import json

    folder = tmp_path_factory.mktemp("tiny")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + ["<", ">"]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    torch.manual_seed(0)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, sample_size=16,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae, text, tokenizer, unet, diffusers.DDIMScheduler(), None, None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder / "pipeline")
    return str(folder / "pipeline")


def test_an_image_depends_on_its_own_prompt_and_seed_alone(model):
    generator = DiffusersImages(model, steps=2)
    first, second, third = generator.generate(["a cat", "a cat", "a dog"], [5, 6, 5], ["", "", "red"])
    assert first.shape == (16, 16, 3) and first.dtype == np.uint8
    assert not np.array_equal(first, second) and not np.array_equal(first, third)
    (alone,) = generator.generate(["a cat"], [5], [""])
    assert np.abs(alone.astype(int) - first).max() <= 1
    (large,) = generator.generate(["a cat"], [5], size=(24, 32))
    assert large.shape == (24, 32, 3)
    assert generator.provider == "diffusers pipeline, 2 steps, guidance 7.5"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stars")
    for number in range(3):
        Image.new("RGB", (20, 24), (number * 80, 10, 200)).save(folder / f"{number}.png")
    return [str(path) for path in sorted(folder.iterdir())]


def test_a_word_is_learned_once_and_drawn_with(model, pictures, tmp_path):
    learner = TextualInversion(model, str(tmp_path / "words"), steps=3, learning_rate=0.1, batch_size=2)
    assert learner.learn("star", pictures, "star shape") == "<star>"
    file = tmp_path / "words/star.safetensors"
    learned = file.read_bytes()
    assert learner.learn("star", [], "star") == "<star>" and file.read_bytes() == learned
    again = TextualInversion(model, str(tmp_path / "again"), steps=3, learning_rate=0.1, batch_size=2)
    again.learn("star", pictures, "star shape")
    assert (tmp_path / "again/star.safetensors").read_bytes() == learned
    generator = DiffusersImages(model, embeddings=str(tmp_path / "words"), steps=2)
    generator.check(["a photo of a <star>"], [0])
    (drawn,) = generator.generate(["a photo of a <star>"], [0])
    (plain,) = generator.generate(["a photo of a star"], [0])
    assert not np.array_equal(drawn, plain)
    with pytest.raises(FileNotFoundError, match="no embedding of <heart>"):
        generator.check(["a photo of a <heart>"], [0])
    with pytest.raises(FileNotFoundError, match="no embedding of <living room>"):
        generator.check(["a <living room> with a lamp"], [0])


def test_learning_lowers_the_denoising_loss_by_the_word_alone(model, pictures, tmp_path, monkeypatch):
    from lightning_xai.data import diffusion_models

    kept, losses, totals = diffusion_models._denoising_loss, {}, {}

    def seen(pipeline, *rest):
        loss = kept(pipeline, *rest)
        parts = (pipeline.unet, pipeline.text_encoder, pipeline.vae)
        totals[rate].add(sum(float(weight.double().sum()) for part in parts for weight in part.parameters()))
        losses[rate].append(float(loss.detach()))
        return loss

    monkeypatch.setattr(diffusion_models, "_denoising_loss", seen)
    for rate in (0.0, 0.3):  # both see the same images, noise and times
        losses[rate], totals[rate] = [], set()
        learner = TextualInversion(model, str(tmp_path / f"{rate}"), steps=60, learning_rate=rate, batch_size=4)
        learner.learn("star", pictures, "star")
    assert losses[0.3][0] == losses[0.0][0]
    assert sum(losses[0.3][20:]) < sum(losses[0.0][20:])
    assert [len(weights) for weights in totals.values()] == [1, 1]


def test_what_is_missing_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json; give the folder of a diffusers pipeline"):
        DiffusersImages(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json; give the folder of a diffusers pipeline"):
        TextualInversion(str(tmp_path), str(tmp_path))
    with pytest.raises(ValueError, match="class 'star': textual inversion needs images"):
        TextualInversion(model, str(tmp_path)).learn("star", [], "star")
    with pytest.raises(FileNotFoundError, match="no such folder of learned words"):
        DiffusersImages(model, embeddings=str(tmp_path / "none")).check([], [])
