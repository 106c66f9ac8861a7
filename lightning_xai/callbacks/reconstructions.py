"""What a masked autoencoder paints, during validation: the same patches of the same images every time."""

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_xai.callbacks.pictures import log_picture
from lightning_xai.callbacks.undisturbed import require_whole_network, undisturbed
from lightning_xai.draw.reconstruction import ReconstructionRow, draw_reconstructions


class Reconstructions(pl.Callback):
    """Draw original, visible patches and reconstruction in the validation of every n-th epoch and the last.

    Shown are `samples` of the images that the first process validates on, chosen by a hash of their index: those of
    one class often follow each other. The module must have
    `reconstruction(batch)`, see `MAEPretraining`; it is run once more for these images, without gradients, in eval
    mode, on the first process alone. The picture goes to all loggers and to the run's folder.
    """

    def __init__(self, samples: int = 4, every_n_epochs: int = 1):
        if min(samples, every_n_epochs) < 1:
            given = f"samples={samples}, every_n_epochs={every_n_epochs}"
            raise ValueError(f"{given}: each is at least 1; leave the callback out to draw nothing")
        self.samples, self.every_n_epochs = samples, every_n_epochs
        self.watched: dict[int, Tensor] = {}
        self._complete = False  # the images were chosen by a whole validation and stay

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require_whole_network(trainer, self)
        if not callable(getattr(pl_module, "reconstruction", None)):
            raise TypeError(
                f"{type(pl_module).__name__} has no reconstruction(batch): the callback Reconstructions is for "
                "MAEPretraining, leave it out here"
            )

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if self._complete or trainer.sanity_checking or not trainer.is_global_zero:
            return
        for identity, image in zip(batch["index"].tolist(), batch["images"], strict=True):
            if len(self.watched) >= self.samples and _place(identity) >= max(map(_place, self.watched)):
                continue
            self.watched[identity] = image.cpu().clone()
            if len(self.watched) > self.samples:
                del self.watched[max(self.watched, key=_place)]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or not self.watched:
            return
        self._complete = True
        epoch = trainer.current_epoch + 1
        if trainer.state.fn == "fit" and epoch % self.every_n_epochs and epoch != trainer.max_epochs:
            return
        identities = sorted(self.watched)
        images = torch.stack([self.watched[identity] for identity in identities]).to(pl_module.device)
        with undisturbed(trainer, pl_module):
            made = pl_module.reconstruction({"images": images, "index": torch.tensor(identities)})
        pictures = (
            part.cpu().permute(0, 2, 3, 1).numpy() for part in (made.original, made.visible, made.painted, made.pasted)
        )
        rows = [
            ReconstructionRow(*parts, caption=f"original, image {identity}", quality=f"(loss {loss:.3f})")
            for identity, loss, *parts in zip(identities, made.losses.tolist(), *pictures, strict=True)
        ]
        title = f"epoch {trainer.current_epoch}: {made.hidden:.0%} of the patches hidden"
        if made.scaled:
            title += "; reconstructed patches are shown with the mean and contrast of the original ones"
        log_picture(trainer, "reconstructions", draw_reconstructions(rows, title), trainer.global_step)


def _place(identity: int) -> int:
    """Where an image stands in the order of choice: neighbours are far apart, by Knuth's multiplicative hash."""
    return identity * 2_654_435_761 % 2**32
