"""Training and evaluating a network of images and texts by contrast, and saying what of its answers is explained."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_xai.evaluate.retrieval import RetrievalScores
from lightning_xai.explain.explainable import Choice, Explained, Prediction
from lightning_xai.explain.targets import pair_targets
from lightning_xai.nets.clip import CLIP, load_clip_checkpoint
from lightning_xai.nets.clip_inputs import MEAN, STD
from lightning_xai.tasks.layer_decay import weight_decay_groups
from lightning_xai.tasks.mae_recipe import MAERecipe

LARGEST_SCALE = math.log(100)


class ImageTextTask(MAERecipe):
    """Train CLIP on pairs of an image and its text, and measure how well each finds the other.

    A batch has images uint8 (B, 3, h, w), texts (B strings) and index (B,). The loss is the mean of the cross-entropies
    of each image's own text among all texts of the step, on all processes, and of each text's image; the scale of the
    logits is held at 100 at most (Radford et al., 2021, figure 3 and section 2.5). Rates and accumulation: see
    `MAERecipe`; AdamW with betas (0.9, 0.98), eps 1e-6 and decay for all but vectors and biases. checkpoint: a file of
    OpenAI's or of this project, or a folder of transformers, whose weights training or evaluation starts from.

    After validation or test `last_scores` has the recalls of `RetrievalScores`.
    """

    def __init__(
        self,
        net: CLIP,
        lr: float | None = 5e-4,
        blr: float = 1e-3,
        min_lr: float = 0.0,
        warmup_epochs: float = 0.5,
        weight_decay: float = 0.2,
        drop_leftover: bool = True,
        checkpoint: str | None = None,
    ):
        super().__init__(lr, blr, min_lr, warmup_epochs, drop_leftover)
        self.net = net
        self.weight_decay = weight_decay
        self.scores = RetrievalScores()
        self.last_scores: dict[str, float] | None = None
        self.pixel_mean.copy_(255 * torch.tensor(MEAN)[:, None, None])
        self.pixel_std.copy_(255 * torch.tensor(STD)[:, None, None])
        if checkpoint is not None:
            load_clip_checkpoint(net, checkpoint)

    def prepare(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The normalised images (B, 3, h, w) and the token numbers (B, T) of a batch."""
        (images,) = super().prepare(batch)
        side = self.net.image_size
        if tuple(images.shape[-2:]) != (side, side):
            h, w = images.shape[-2:]
            raise ValueError(f"images of {h} x {w} pixels, but this network has {side} x {side}: set image_size={side}")
        return images, self.net.tokens(batch["texts"]).to(images.device)

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Any]:
        return self.net(images, tokens)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = weight_decay_groups(self.net, self.weight_decay)
        for group in groups:
            del group["names"]
        return torch.optim.AdamW(
            groups, lr=0.0, betas=(0.9, 0.98), eps=1e-6, fused=self.trainer.precision != "16-mixed"
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        outputs = self(*self.prepare(batch))
        image, text = (F.normalize(outputs[f"{name}_features"].float(), dim=1) for name in ("image", "text"))
        loss = contrastive_loss(image, text, *self._everyones(image, text), self.net.scale(), self.global_rank)
        return self.finite(loss, batch, batch_idx)

    def _everyones(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The features of all processes, (world * B, C), with their gradients."""
        if self.trainer.world_size == 1:
            return image, text
        everyones = self.all_gather((image, text), sync_grads=True)
        return everyones[0].flatten(0, 1), everyones[1].flatten(0, 1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.net.net.logit_scale.clamp_(max=LARGEST_SCALE)

    def on_validation_epoch_start(self) -> None:
        self.scores.reset()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        outputs = self(*self.prepare(batch))
        self.scores.update(batch["index"], outputs["image_features"], outputs["text_features"], batch["texts"])

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._end_evaluation("test")

    def _end_evaluation(self, stage: str) -> None:
        numbers = self.scores.compute()
        self.scores.reset()
        if not self.trainer.sanity_checking:
            self.last_scores = numbers
        # all processes hold the same numbers; their maximum is exactly that number, their mean may be rounded
        options = {"sync_dist": True, "reduce_fx": "max"}
        self.log_dict({f"{stage}/{name}": value for name, value in numbers.items()}, **options)

    def explained(
        self, outputs: Mapping[str, Any], batch: Mapping[str, Any], choice: str = "predicted", limit: int | None = None
    ) -> Explained:
        """The similarity of each image and its text, whatever `limit` above 0; "predicted" and "truth" are the same."""
        Choice.parse(choice, ("predicted", "truth"))
        if limit is not None and limit < 1:
            raise LookupError(f"limit={limit} leaves no target to explain")
        cosines = outputs["logits_per_image"].detach().float().diagonal() / self.net.scale().detach()
        targets = pair_targets(outputs["logits_per_image"], self.net.readout(outputs)["text"])
        pairs = zip(batch["texts"], cosines.tolist(), strict=True)
        names = tuple(f"{text!r}: cosine {cosine:.2f}" for text, cosine in pairs)
        return Explained(targets, names, torch.full_like(targets.samples, -1))

    def prediction(self, outputs: Mapping[str, Any], batch: Mapping[str, Any], sample: int) -> Prediction:
        """The five texts of the batch that fit one image best, with their probabilities among all of them."""
        texts = list(dict.fromkeys(batch["texts"]))
        first = [batch["texts"].index(text) for text in texts]
        logits = outputs["logits_per_image"][sample].detach().float()[first]
        if len(texts) == 1:
            return Prediction((f"cosine {float(logits[0] / self.net.scale().detach()):.2f}",))
        best = logits.softmax(0).topk(min(5, len(texts)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Prediction(tuple(f"{texts[i]} {share:.2f}" for i, share in pairs))


def contrastive_loss(
    image: Tensor, text: Tensor, all_image: Tensor, all_text: Tensor, scale: Tensor, rank: int = 0
) -> Tensor:
    """(CE(s image all_text^T, own) + CE(s text all_image^T, own)) / 2, a scalar.

    image, text: (B, C), the pairs of process `rank`, of length 1. all_image, all_text: (world * B, C), of all processes
    by rank. scale: s. Averaged over processes it is the loss of one process with all pairs.
    """
    own = torch.arange(len(image), device=image.device) + rank * len(image)
    by_image, by_text = scale * image @ all_text.T, scale * text @ all_image.T
    return (F.cross_entropy(by_image, own) + F.cross_entropy(by_text, own)) / 2
