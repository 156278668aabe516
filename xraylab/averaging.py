"""Averages of the weights of several steps, which are evaluated and kept in place of those of the last step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging

from xraylab.errors import UserError


class StochasticWeightAveraging(WeightAveraging):
    """The mean of the weights after every step from an epoch on (Izmailov et al. 2018, arXiv:1803.05407).

    From that epoch on, validation is of the mean, and the best checkpoint is chosen among such epochs alone. Batch statistics are
    averaged as the weights are, and not measured anew. The learning rate is the scheduler's: a mean needs one that stays high.

    Args:
        start: the first epoch that counts, from 1.
    """

    def __init__(self, start: int) -> None:
        if not isinstance(start, int) or start < 1:
            raise UserError(f"callbacks.swa.start={start}: it is an epoch, counted from 1.")
        super().__init__()
        self.start = start

    def check(self, max_epochs: int) -> None:
        """Refuse, before data is read, what would never happen.

        Raises:
            UserError: there are fewer epochs.
        """
        if self.start > max_epochs:
            raise UserError(f"callbacks.swa.start={self.start}, but max_epochs={max_epochs}: nothing would ever be averaged.")

    @property
    def begun(self) -> bool:
        """Whether there is a mean yet."""
        return self._latest_update_step > 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the step to the mean."""
        if trainer.current_epoch + 1 < self.start:
            return
        if not self.begun:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
                    _forget(callback, trainer)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the mean, once there is one."""
        if self.begun:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the weights of the last step back."""
        if self.begun:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the mean in the module."""
        if self.begun:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the mean as the checkpoint's weights, once there is one."""
        if self.begun:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the mean back, where there was one."""
        if "averaging_state" in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _forget(callback: ModelCheckpoint, trainer: pl.Trainer) -> None:
    """Let the best be chosen anew; files of a name that the next ones will not have are removed."""
    for path in callback.best_k_models if callback.save_top_k > 1 else ():
        trainer.strategy.remove_checkpoint(path)
    callback.best_k_models, callback.best_model_score, callback.best_model_path = {}, None, ""
    callback.kth_best_model_path, callback.kth_value = "", torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)


def weights_in_words(checkpoint: Mapping[str, Any], callbacks: Iterable[str]) -> str:
    """Which weights a checkpoint holds: those of its step, or an average.

    Args:
        checkpoint: as read.
        callbacks: that average, by the names of the configuration.
    """
    if "averaging_state" not in checkpoint:
        return "of the step"
    return f"averaged over {int(checkpoint['averaging_state']['n_averaged']):,} steps ({', '.join(callbacks) or 'callback'})"
