"""The checkpoint that an interrupted run goes on from."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt`, also written when a run is told to stop (SIGTERM, Ctrl-C).

    Any other exception leaves the file as it is: a run that fails because its weights went wrong must not put them in
    the place of good ones.
    """

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, (KeyboardInterrupt, SIGTERMException)):
            super().on_exception(trainer, pl_module, exception)
