"""A run that a signal stops, whole and ready to go on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from xraylab.data.batching import Batch
from xraylab.system.signals import END_SIGNALS
from xraylab.training.checkpoints import LATER
from xraylab.training.distributed.collectives import abort_nccl, largest, rank


class Interrupted(Exception):
    """Raised where training is stopped in the middle of an epoch; ``last.ckpt`` holds everything."""


class StopOnInterrupt(Callback):
    """Callback that writes ``last.ckpt`` within epochs: every so often while training goes on, and where it is asked to stop.

    Ctrl-C, SIGTERM and SIGUSR1 (SLURM's) end training after the current optimiser step; a second one at once. In the middle of an
    epoch that raises :class:`Interrupted`, because ``trainer.should_stop`` would run the hooks of the epoch's end, and they would
    write a checkpoint of an epoch that was never finished. Several processes tell each other after every step: their hosts
    wait for one another, and for no device.

    Args:
        checkpoint: the file.
        steps, seconds: how often it is written; None: not for that reason.

    Attributes:
        trained: whether any batch was trained on.
        asked: the signal that came to this process, if one did.
        stopped: the signal that training was stopped for, in all processes at one step; or 0.
    """

    def __init__(self, checkpoint: Path, steps: int | None = None, seconds: float | None = None) -> None:
        self.checkpoint, self.steps, self.seconds = checkpoint, steps, seconds
        self.trained = False
        self.asked: int | None = None
        self.stopped = 0
        self._old: dict[int, Any] = {}
        self._saved = time.monotonic()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():  # the only one that signals reach
            self._old = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, *END_SIGNALS)}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, Interrupted):
            abort_nccl()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = time.monotonic()
        for early in trainer.early_stopping_callbacks:
            if early.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
                trainer.should_stop = True  # a resumed run that had stopped early does not train another epoch

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a reader, forked from the process that decides
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked:  # a scheduler and torchrun both send one
            return
        self.asked = number
        again = "Ctrl-C again stops at once" if number == signal.SIGINT else f"{signal.Signals(number).name} came"
        if rank() == 0:
            print(f"\nstopping after this step; {again}", file=sys.stderr)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.trained = True
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not stepped or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        asked, due = largest(self.asked or 0, self._due(trainer))
        if asked:
            trainer.save_checkpoint(self.checkpoint)
            self.stopped = asked
            raise Interrupted
        if due:
            self._saved = time.monotonic()
            trainer.save_checkpoint(self.checkpoint, storage_options=LATER)

    def _due(self, trainer: pl.Trainer) -> bool:
        if self.steps is not None:
            return trainer.global_step % self.steps == 0
        return self.seconds is not None and time.monotonic() - self._saved >= self.seconds

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = time.monotonic()
        (asked,) = largest(self.asked or 0)
        going_on = trainer.current_epoch + 1 < (trainer.max_epochs or 0) and not trainer.should_stop
        if asked and (going_on or asked in END_SIGNALS):  # after the last epoch there may be no time to evaluate
            self.stopped, trainer.should_stop = asked, True

    def restore(self) -> None:
        """Give signals back, after the fit; Lightning's own teardown would leave them here."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}
