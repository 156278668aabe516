"""A training that ends where its loss or weights are no numbers, naming the step and its studies."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from xraylab.data.batching import Batch
from xraylab.errors import UserError, listed
from xraylab.training.distributed.collectives import gather, largest

REMEDIES = "Lower optimizer.lr, set gradient_clip=1.0 or precision=32, or look at the studies (python -m xraylab.check)."


class Diverged(UserError):
    """The error of a training that came to numbers that are not finite; going on would come to them again."""


class FiniteLoss(Callback):
    """Callback that ends training at the first batch whose loss is NaN or infinite in any process, naming its step and studies.

    The number of that batch is kept on the device and looked at, in all processes, every ``every`` steps, before a checkpoint is
    written and before validation.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._batches: list[tuple[int, int, tuple[str, ...]]] = []  # step, epoch, ids since the last look
        self._latest = self._batches  # of the step before that look
        self._seen = self._first = torch.zeros(())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._forget(pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int) -> None:
        self._batches.append((trainer.global_step + 1, trainer.current_epoch + 1, batch.ids))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        loss: Tensor = outputs["loss"]
        self._seen = self._seen + 1
        self._first = torch.where((self._first == 0) & ~torch.isfinite(loss.detach()), self._seen, self._first)
        step, _, _ = self._batches[-1]
        if trainer.global_step == step and step % self.every == 0:  # it was the step's last batch
            self._look(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look(pl_module)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._look(pl_module)  # no checkpoint is worth more than the one before
        if self._latest and not torch.stack([torch.isfinite(p).all() for p in pl_module.parameters()]).all():
            step, epoch, _ = self._latest[-1]
            ids = [i for of in gather([i for _, _, own in self._latest for i in own]) for i in of]
            raise Diverged(
                f"the weights are not finite numbers after step {step}, in epoch {epoch}, of the studies {listed(ids, 20)}: "
                f"their loss was finite, but its gradient was not. {REMEDIES} The last checkpoint is of before."
            )

    def _look(self, pl_module: pl.LightningModule) -> None:
        if not self._batches:
            return
        first = int(self._first)
        ago = len(self._batches) - first + 1 if first else 0
        (earliest,) = largest(ago)  # all have as many batches, with parts of the same studies
        if earliest:
            step, epoch, own = self._batches[-earliest]
            ids = [i for of in gather(own if ago == earliest else ()) for i in of]
            raise Diverged(
                f"the loss is not a finite number at step {step}, in epoch {epoch}, of the studies {listed(ids, 20)}: "
                "training has diverged, by this step or the one before, or something is wrong with those studies. "
                f"{REMEDIES} No checkpoint was written since."
            )
        self._forget(pl_module)

    def _forget(self, pl_module: pl.LightningModule) -> None:
        self._latest = [batch for batch in self._batches if batch[0] == self._batches[-1][0]]
        self._batches.clear()
        self._seen = self._first = torch.zeros((), dtype=torch.int32, device=pl_module.device)
