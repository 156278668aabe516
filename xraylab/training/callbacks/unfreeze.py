"""Unfreezing: layers that are trained from an epoch on."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy

from xraylab.errors import UserError
from xraylab.models.backbones.base import Backbone
from xraylab.training.study_module import StudyModule

log = logging.getLogger(__name__)


class Unfreeze(Callback):
    """Callback that trains more of the backbone from an epoch on.

    Args:
        at: epoch, counted from 1 -> ``trainable_from``, as the backbone takes it; null: all of it.
        freeze_batch_stats: whether what stays frozen keeps its batch statistics.

    >>> Unfreeze(at={4: None}).at  # all of it is trained from the fourth epoch on
    {4: None}
    """

    def __init__(self, at: Mapping[int, str | int | None], freeze_batch_stats: bool = True) -> None:
        if not at or not all(isinstance(epoch, int) and epoch > 1 for epoch in at):
            raise UserError(f"callbacks.unfreeze.at={dict(at)}: it is {{epoch: stage}}, epochs counted from 1, so at least 2.")
        self.at, self.freeze_batch_stats = dict(at), freeze_batch_stats
        self._reached = 0

    def check(self, backbone: Backbone, max_epochs: int) -> None:
        """Refuse, before data is read, what could not be done.

        Raises:
            UserError: the backbone has no such place, or there are fewer epochs.
        """
        if late := [epoch for epoch in self.at if epoch > max_epochs]:
            raise UserError(f"callbacks.unfreeze.at: epoch {late[0]}, but max_epochs={max_epochs}: it would never happen.")
        frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
        for epoch, place in sorted(self.at.items()):
            try:
                still = backbone.before(place)
            except UserError as error:
                raise UserError(str(error).replace("backbone.trainable_from", "callbacks.unfreeze.at")) from None
            if not still < frozen:
                raise UserError(
                    f"callbacks.unfreeze.at: epoch {epoch} trains no more than before it, from {place} on. "
                    "Begin with less: backbone.trainable_from=head."
                )
            frozen = still

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reached = 0
        self.on_train_epoch_start(trainer, pl_module)  # which Lightning leaves out in the middle of an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, StudyModule)
        due = max((epoch for epoch in self.at if epoch <= trainer.current_epoch + 1), default=0)
        if due > self._reached:
            self._reached = due
            pl_module.net.backbone.freeze(self.at[due], self.freeze_batch_stats)
            if isinstance(trainer.strategy, DDPStrategy):  # which averages the gradients of what was trained when it was made
                trainer.strategy.model = pl_module
                trainer.strategy.configure_ddp()
            trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
            log.info("epoch %d: trainable from %s on: %s parameters", due, self.at[due] or "the first layer", f"{trained:,}")
