"""Text-to-image models of the library diffusers from a local folder: drawing images, and learning a class's word.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models"; Gal et al., "An Image is Worth
One Word" (textual inversion).
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_xai.data.image_generators import ImageGenerator
from lightning_xai.data.picture_file import decode_picture, read_bytes
from lightning_xai.data.token_learners import EMBEDDINGS, TokenLearner, find_embedding, token_of

# What the photos that a word is learned from are called, from the paper's list.
PHOTOS = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of one {}",
    "a close-up photo of a {}",
    "a good photo of a {}",
    "a bright photo of the {}",
)


def check_pipeline(folder: str) -> None:
    """Whether `folder` holds a pipeline that can be loaded here.

    Raises:
        FileNotFoundError: there is no pipeline in the folder.
        ImportError: diffusers is not installed.
    """
    if not (Path(folder) / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no model_index.json; give the folder of a diffusers pipeline, such as a download of Stable "
            "Diffusion."
        )
    if find_spec("diffusers") is None:
        raise ImportError("text-to-image models need the library diffusers: pip install 'lightning_xai[diffusion]'")


def load_pipeline(folder: str, device: torch.device, half: bool = False) -> Any:
    """The Stable Diffusion pipeline that lies in `folder`, nothing downloaded, without its safety checker.

    half: its weights become float16. Errors: see `check_pipeline`.
    """
    check_pipeline(folder)
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        folder,
        local_files_only=True,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **({"torch_dtype": torch.float16} if half else {}),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class DiffusersImages(ImageGenerator):
    """Draws images by a Stable Diffusion pipeline.

    Args:
        model: folder of the pipeline.
        embeddings: folder of learned words, one `<class name>.safetensors` (or .bin, .pt) each, used as `<class name>`
            in angle brackets.
        steps: denoising steps.
        guidance: how closely an image follows its prompt.
    """

    def __init__(self, model: str, embeddings: str | None = None, steps: int = 50, guidance: float = 7.5):
        check_pipeline(model)  # not as late as its first image: words may be learned for hours before that
        self.model, self.steps, self.guidance = Path(model), steps, guidance
        self.embeddings = None if embeddings is None else Path(embeddings)
        self._pipeline = None

    @property
    def provider(self) -> str:
        return f"diffusers {self.model.name}, {self.steps} steps, guidance {self.guidance:g}"

    def check(self, prompts: Sequence[str], seeds: Sequence[int]) -> None:
        """Load the model; a learned word without its embedding is an error."""
        pipeline = self._loaded()
        known = set(pipeline.tokenizer.get_added_vocab())
        words = {word for prompt in prompts for word in re.findall(r"<[^<>]+>", prompt)} - known
        if words:
            raise FileNotFoundError(
                f"no embedding of {', '.join(sorted(words))} in {self.embeddings or 'the model'}; give "
                "`--generator.embeddings` a folder with <class name>.safetensors."
            )

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative_prompts: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
    ) -> list[np.ndarray]:
        pipeline = self._loaded()
        height, width = size or (None, None)
        # a generator an image, on the CPU: the same starting noise in every batch and on every device
        drawn = pipeline(
            list(prompts),
            negative_prompt=list(negative_prompts) if negative_prompts is not None else None,
            height=height,
            width=width,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        )
        return list((drawn.images * 255).round().clip(0, 255).astype(np.uint8))

    def _loaded(self) -> Any:
        if self._pipeline is None:
            device = _device()
            pipeline = load_pipeline(str(self.model), device, half=device.type == "cuda")
            if self.embeddings is not None:
                if not self.embeddings.is_dir():
                    raise FileNotFoundError(f"{self.embeddings}: no such folder of learned words.")
                files = sorted(file for file in self.embeddings.iterdir() if file.suffix in EMBEDDINGS)
                for file in files:
                    pipeline.load_textual_inversion(str(file), token=token_of(file.stem), local_files_only=True)
            self._pipeline = pipeline
        return self._pipeline


class TextualInversion(TokenLearner):
    """Learns a class's word by textual inversion: only its embedding is trained, to denoise the class's images.

    The embedding starts as the mean of those of `init_word`; it is saved as `<folder>/<class name>.safetensors` and
    not learned again where that file exists. Loss: ‖ε - ε_θ(z_t, t, text)‖² (or the velocity, as the model predicts).

    Args:
        model: folder of a Stable Diffusion pipeline.
        folder: where the learned words are saved.
        steps: optimiser steps (AdamW) for each word.
        learning_rate: of the embedding, for a batch of `batch_size`.
        size: side in pixels that images are cropped and resized to; the model's own unless given.
        seed: order of the images, noise and time steps depend on it and on the class's name.
    """

    def __init__(
        self,
        model: str,
        folder: str,
        steps: int = 3000,
        learning_rate: float = 5e-4,
        batch_size: int = 4,
        size: int | None = None,
        seed: int = 0,
    ):
        check_pipeline(model)
        self.model, self.folder = Path(model), Path(folder)
        self.steps, self.learning_rate, self.batch_size = steps, learning_rate, batch_size
        self.size, self.seed = size, seed

    @property
    def provider(self) -> str:
        return f"textual inversion of {self.model.name}, {self.steps} steps"

    def learn(self, class_name: str, images: Sequence[str], init_word: str) -> str:
        """The class's word, `<class name>` in angle brackets.

        Raises:
            ValueError: there is no image to learn from.
        """
        word = token_of(class_name)
        if find_embedding(self.folder, class_name) is not None:
            return word
        if not images:
            raise ValueError(
                f"class {class_name!r}: textual inversion needs images to learn from (`--training_images`)."
            )
        embedding = self._trained(class_name, images, init_word)
        self.folder.mkdir(parents=True, exist_ok=True)
        from safetensors.torch import save_file

        half = self.folder / f"{class_name}.half"
        save_file({word: embedding}, half)
        half.replace(self.folder / f"{class_name}.safetensors")
        return word

    def _trained(self, class_name: str, images: Sequence[str], init_word: str) -> Tensor:
        """The learned embedding (1, C) float32."""
        from lightning_xai.data.debugset_prompts import image_seed

        device = _device()
        pipeline = load_pipeline(str(self.model), device)
        word, draws = token_of(class_name), torch.Generator().manual_seed(image_seed(self.seed, class_name, 0))
        text_encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
        for part in (text_encoder, pipeline.unet, pipeline.vae):
            part.eval().requires_grad_(False)
        tokenizer.add_tokens(word)
        with torch.random.fork_rng(devices=[]):  # the new row is drawn, and never read
            text_encoder.resize_token_embeddings(len(tokenizer))
        place = tokenizer.convert_tokens_to_ids(word)
        table = text_encoder.get_input_embeddings()
        with torch.no_grad():
            starts = tokenizer(init_word, add_special_tokens=False).input_ids
            learned = table.weight[starts].mean(0, keepdim=True).clone().requires_grad_()
        # only the word's row is learned: it takes the place of the table's own wherever the word is read
        hook = table.register_forward_hook(
            lambda _, inputs, output: torch.where((inputs[0] == place)[..., None], learned.to(output.dtype), output)
        )
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        optimizer = torch.optim.AdamW([learned], lr=self.learning_rate, weight_decay=1e-2)
        side = self.size or pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        try:
            for _ in range(self.steps):
                chosen = torch.randint(len(images), (self.batch_size,), generator=draws).tolist()
                named = torch.randint(len(PHOTOS), (self.batch_size,), generator=draws).tolist()
                pixels = torch.stack([_square(images[index], side) for index in chosen]).to(device)
                texts = [PHOTOS[index].format(word) for index in named]
                loss = _denoising_loss(pipeline, scheduler, pixels, texts, draws)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        finally:
            hook.remove()
        if not bool(learned.isfinite().all()):
            raise ValueError(f"the word of class {class_name!r} became not finite; lower learning_rate.")
        return learned.detach().cpu().contiguous()


def _square(file: str, side: int) -> Tensor:
    """The middle square of a picture, (3, side, side) in [-1, 1]."""
    image = decode_picture(read_bytes(file), file).float()
    half = min(image.shape[1:])
    top, left = (image.shape[1] - half) // 2, (image.shape[2] - half) // 2
    image = image[None, :, top : top + half, left : left + half]
    image = torch.nn.functional.interpolate(image, (side, side), mode="bicubic", antialias=True)[0]
    return image.clamp(0, 255) / 127.5 - 1


def _denoising_loss(pipeline: Any, scheduler: Any, pixels: Tensor, texts: list[str], draws: torch.Generator) -> Tensor:
    """Mean squared error of the predicted noise (or velocity) of `pixels` (B, 3, h, w) under `texts`."""
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=draws).to(latents)
    times = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=draws).to(latents.device)
    noisy = scheduler.add_noise(latents, noise, times)
    ids = pipeline.tokenizer(
        texts,
        padding="max_length",
        max_length=pipeline.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    states = pipeline.text_encoder(ids.to(latents.device))[0]
    predicted = pipeline.unet(noisy, times, states).sample
    if scheduler.config.prediction_type == "v_prediction":
        noise = scheduler.get_velocity(latents, noise, times)
    return torch.nn.functional.mse_loss(predicted, noise)
