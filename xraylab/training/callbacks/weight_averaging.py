"""Averages of the weights of several steps, which are evaluated and kept in place of those of the last step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel

from xraylab.errors import UserError

log = logging.getLogger(__name__)


class Averages(AveragedModel):
    """A model's averaged weights, as torch's ``AveragedModel``; the number of averaged steps stays on the CPU.

    torch's own (2.15) asks the device for that number at every step, or sends it there for every parameter: the host waits.

    Args:
        share: of the current weights, by how many are averaged already.
    """

    def __init__(self, model: nn.Module, share: Callable[[int], float]) -> None:
        super().__init__(model, use_buffers=True)
        self.share = share

    def update_parameters(self, model: nn.Module) -> None:
        """Add the current weights and batch statistics; counts are taken over."""
        n = int(self.n_averaged)
        ours, theirs = (chain(of.parameters(), of.buffers()) for of in (self.module, model))
        for averaged, current in zip(ours, theirs, strict=True):
            if n and averaged.is_floating_point():
                averaged.detach().lerp_(current.detach(), self.share(n))
            else:
                averaged.detach().copy_(current.detach())
        self.n_averaged += 1


class OnDevice(WeightAveraging):
    """Base of the averaging callbacks: averages that live on the model's device.

    Lightning (2.6) makes them before the model is on its device, and so copies it at every step.
    """

    def share(self, n: int) -> float:
        """The part of the current weights in the new average, of n steps before."""
        raise NotImplementedError

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the averages, before a fit."""
        if stage == "fit":
            self._average_model = Averages(pl_module, self.share)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Follow the model to its device."""
        assert self._average_model is not None
        self._average_model.module.to(pl_module.device)


class ExponentialAveraging(OnDevice):
    """Callback that keeps an exponential moving average of the weights, from the first step on.

    The average is what is validated, kept in checkpoints and evaluated.

    Args:
        decay: share of the average before, at each step.

    >>> ExponentialAveraging(decay=0.75).share(10)  # of the current weights, after ten steps
    0.25
    """

    def __init__(self, decay: float = 0.999) -> None:
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay}: it is a number from 0 to below 1.")
        super().__init__()
        self.decay = decay

    def share(self, n: int) -> float:
        """The part of the current weights in the new average: the same at every step."""
        return 1 - self.decay


class StochasticWeightAveraging(OnDevice):
    """Callback that keeps the mean of the weights after every step from an epoch on (Izmailov et al. 2018, arXiv:1803.05407).

    From that epoch on, validation is of the mean; the best checkpoint is chosen, and early stopping counts, among such epochs
    alone. Batch statistics are averaged as the weights are, and not measured anew. The learning rate is the scheduler's: a mean
    needs one that stays high.

    Args:
        start: the first epoch that counts, from 1.

    >>> StochasticWeightAveraging(start=11).share(4)  # of the current weights, after four steps that count
    0.2
    """

    def __init__(self, start: int) -> None:
        if not isinstance(start, int) or start < 1:
            raise UserError(f"callbacks.swa.start={start}: it is an epoch, counted from 1.")
        super().__init__()
        self.start = start

    def share(self, n: int) -> float:
        """The part of the current weights in the new mean, of n steps before: as much as each of those."""
        return 1 / (n + 1)

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
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if trainer.current_epoch + 1 < self.start or not (self.begun or whole):  # else the step before would count
            return
        if not self.begun:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
                    _forget(callback, trainer)
            for early in trainer.early_stopping_callbacks:
                early.wait_count, early.best_score = 0, _worst(early.mode)
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
        """Leave the mean in the module; say it where there is none."""
        if self.begun:
            super().on_train_end(trainer, pl_module)
        elif trainer.is_global_zero:
            log.warning(
                "callbacks.swa.start=%d, but training ended after epoch %d: nothing was averaged, and the results are of the "
                "weights of a step. Start earlier, or let it train longer: early_stopping=null, or a larger patience.",
                self.start, trainer.current_epoch,
            )  # fmt: skip

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
    callback.kth_best_model_path, callback.kth_value = "", _worst(callback.mode)


def _worst(mode: str) -> torch.Tensor:
    return torch.tensor(torch.inf if mode == "min" else -torch.inf)


def weights_in_words(checkpoint: Mapping[str, Any], callbacks: Mapping[str, pl.Callback]) -> str:
    """Which weights a checkpoint holds: those of its step, or an average.

    Args:
        checkpoint: as read.
        callbacks: of the run, by their names in the configuration.
    """
    averaging = {name: c for name, c in callbacks.items() if isinstance(c, WeightAveraging)}
    if "averaging_state" in checkpoint:
        return f"averaged over {int(checkpoint['averaging_state']['n_averaged']):,} steps ({', '.join(averaging) or 'callback'})"
    late = [f"{n} begins at epoch {c.start}" for n, c in averaging.items() if isinstance(c, StochasticWeightAveraging)]
    return f"of the step, not averaged: {late[0]}" if late else "of the step"
