"""What a user sees of a run while it goes on, and how they stop it."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, ProgressBar
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.strategies import DDPStrategy
from tqdm import tqdm

from xraylab.checkpoint_files import LATER
from xraylab.config.settings import EarlyStop, mode_of
from xraylab.data.batching import Batch
from xraylab.data.study_table import SYNTHETIC
from xraylab.errors import UserError
from xraylab.exchange import abandon, gather, largest, rank, summed
from xraylab.loggers import Wandb
from xraylab.models.backbones.base import Backbone
from xraylab.module import StudyModule
from xraylab.system.files import write_text
from xraylab.system.progress import clock
from xraylab.system.signals import ENDING

log = logging.getLogger(__name__)
FIRST_COLUMNS = ["epoch", "step", "lr", "train/loss", "valid/loss"]
LAST_COLUMNS = ["seconds", "studies_per_s", "images_per_s"]


class History(Callback):
    """Writes ``history.csv``, logs one line an epoch, and sends the same numbers to the loggers.

    Args:
        path: of history.csv; rows of earlier epochs of a resumed run are kept.
        labels: whose AUROC columns come first.
        headline: the metric in the line of an epoch.
        synthetic: mark every row by a last column, ``data``.
        unit: what is trained on, study or image.
    """

    def __init__(
        self, path: Path, labels: tuple[str, ...], headline: str, synthetic: bool = False, unit: str = "study"
    ) -> None:  # fmt: skip
        self.path, self.labels, self.headline, self.synthetic, self.unit = path, labels, headline, synthetic, unit
        self.rows: list[dict[str, Any]] = []
        self._units, self._images, self._epoch = 0, 0, 0
        self._start = self._trained = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """The rows, and how far the epoch is, so that a resumed run's history is that of its checkpoint."""
        units, images = self._counted()
        return {"rows": self.rows, "units": units, "images": images, "seconds": time.monotonic() - self._start}

    def _counted(self) -> list[int]:
        """Units and images of the epoch so far, in all processes."""
        return [sum(counts) for counts in zip(*gather((self._units, self._images)), strict=True)]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.rows = list(state["rows"])
        self._units, self._images = (state["units"], state["images"]) if rank() == 0 else (0, 0)
        self._start = time.monotonic() - state["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch = trainer.current_epoch
        for logger in trainer.loggers:
            if isinstance(logger, Wandb):
                logger.mend([{k: v for k, v in row.items() if not _nan(v)} for row in self.rows])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()
        self._epoch, self._units, self._images = trainer.current_epoch, 0, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._units += len(batch.ids)
        self._images += len(batch.images) if batch.real is None else batch.real
        self._trained = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, StudyModule)
        units, images = self._counted()
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or units == 0:
            return  # stopped in the middle of an epoch: its row is written when it is finished
        total, n = summed(pl_module.epoch_loss).tolist()
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("valid/")}
        seconds = time.monotonic() - self._start
        counts = {"studies": units, "images": images} if self.unit == "study" else {"images": images}
        row: dict[str, Any] = {
            "epoch": self._epoch,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/loss": total / max(n, 1),
            **metrics,
            "seconds": round(seconds, 3),
            **{f"{unit}_per_s": round(count / max(self._trained - self._start, 1e-9), 3) for unit, count in counts.items()},
            **pl_module.loss.state(self.labels),
        }
        self.rows.append(row)
        if not trainer.is_global_zero:
            return
        self._write()
        sent = {k: v for k, v in row.items() if k not in ("epoch", "step", *metrics) and not _nan(v)}
        for logger in trainer.loggers:
            logger.log_metrics({**sent, "epoch": self._epoch}, step=trainer.global_step)
            logger.save()  # before the checkpoint, behind which a run that is killed goes on
        left = (trainer.max_epochs or 0) - self._epoch - 1
        mean = sum(r["seconds"] for r in self.rows[-5:]) / len(self.rows[-5:])
        named = {"train/loss": row["train/loss"], "valid/loss": metrics.get("valid/loss", math.nan)}
        headline = self.headline if self.headline != "valid/loss" else "valid/macro/auroc"
        named[headline] = row.get(headline, math.nan)
        numbers = "  ".join(f"{k} {v:.4f}" for k, v in named.items())
        rest = f"  at most {clock(left * mean)} to go" if left > 0 and not trainer.should_stop else ""
        log.info("epoch %d/%d  %s  lr %.2g  %.1f s  %.1f %s/s%s", self._epoch + 1, trainer.max_epochs, numbers,
                 row["lr"], seconds, row[f"{next(iter(counts))}_per_s"], next(iter(counts)), rest)  # fmt: skip

    def _write(self) -> None:
        first = FIRST_COLUMNS + [f"valid/{name}/auroc" for name in (*self.labels, "macro")] + LAST_COLUMNS
        columns = first + sorted({k for row in self.rows for k in row} - set(first))
        mark = {"data": SYNTHETIC} if self.synthetic else {}
        text = io.StringIO()
        writer = csv.DictWriter(text, [*columns, *mark], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: "" if _nan(v) else v for k, v in {**row, **mark}.items()} for row in self.rows)
        write_text(self.path, text.getvalue())


class RunningLoss(Callback):
    """The running training loss and learning rates by step, one device sync every ``every`` steps, to loggers and the bar."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.value = math.nan
        self._before = (0.0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The sums of the last point, from which the next one counts."""
        return {"before": self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._before = tuple(state["before"])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = (0.0, 0.0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not stepped or trainer.global_step % self.every:
            return
        assert isinstance(pl_module, StudyModule)
        total, n = summed(pl_module.epoch_loss).tolist()
        if n > self._before[1]:
            self.value = (total - self._before[0]) / (n - self._before[1])
        self._before = (total, n)
        first, *others = (group["lr"] for group in trainer.optimizers[0].param_groups)
        rates = {"lr": first, **({"lr/loss": others[0]} if others else {})}  # what a loss learns has its own
        for logger in trainer.loggers:
            logger.log_metrics({"train/running_loss": self.value, **rates}, step=trainer.global_step)


class StudyProgress(ProgressBar):
    """A bar in studies (or images), with their rate, ETA and the running loss; silent where standard error is not a terminal."""

    def __init__(self, running: RunningLoss, unit: str = "study") -> None:
        super().__init__()
        self.running, self.unit = running, unit
        self._bar: tqdm[Any] | None = None
        self._enabled = sys.stderr.isatty() and rank() == 0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # which Lightning leaves out in the middle of an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._open(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", _studies(trainer.train_dataloader), self.unit)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._bar is not None:
            if not math.isnan(self.running.value):
                self._bar.set_postfix_str(f"loss {self.running.value:.4f}", refresh=False)
            self._bar.update(len(batch.ids) * trainer.world_size)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._open("validating", _studies(trainer.val_dataloaders))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._bar is not None:
            self._bar.update(len(batch.ids))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._open("predicting", _studies(trainer.predict_dataloaders))

    on_predict_batch_end = on_validation_batch_end
    on_predict_end = on_validation_end

    def _open(self, title: str, total: int, unit: str = "study") -> None:
        self._close()
        if self._enabled:
            unit = {"study": " studies", "image": " images"}[unit]
            self._bar = tqdm(total=total, desc=title, unit=unit, leave=False, dynamic_ncols=True, mininterval=0.5)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Interrupted(Exception):
    """Training was stopped in the middle of an epoch; ``last.ckpt`` holds everything."""


class StopOnInterrupt(Callback):
    """Writes ``last.ckpt`` within epochs: every so often while training goes on, and where it is asked to stop.

    Ctrl-C, SIGTERM and SIGUSR1 (SLURM's) end training after the current optimiser step; a second one at once. In the middle of an
    epoch that raises :class:`Interrupted`, because ``trainer.should_stop`` would run the hooks of the epoch's end, and they would
    write a checkpoint of an epoch that was never finished. Several processes tell each other after every step: their hosts
    wait for one another, and for no device.

    Args:
        checkpoint: the file.
        steps, seconds: how often it is written; None: not for that reason.

    Attributes:
        asked: the signal that came to this process, if one did.
        stopped: the signal that training was stopped for, in all processes at one step; or 0.
    """

    def __init__(self, checkpoint: Path, steps: int | None = None, seconds: float | None = None) -> None:
        self.checkpoint, self.steps, self.seconds = checkpoint, steps, seconds
        self.asked: int | None = None
        self.stopped = 0
        self._old: dict[int, Any] = {}
        self._saved = time.monotonic()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():  # the only one that signals reach
            self._old = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, *ENDING)}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, Interrupted):
            abandon()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = time.monotonic()
        for early in trainer.early_stopping_callbacks:
            if isinstance(early, EarlyStopping) and early.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
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
        if asked and (going_on or asked in ENDING):  # after the last epoch there may be no time to evaluate
            self.stopped, trainer.should_stop = asked, True

    def restore(self) -> None:
        """Give signals back, after the fit; Lightning's own teardown would leave them here."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}


def early_stopping(rule: EarlyStop) -> EarlyStopping:
    """What ends training before ``max_epochs``."""
    return EarlyStopping(
        rule.monitor, rule.min_delta, rule.patience, mode=mode_of(rule.monitor), check_on_train_epoch_end=False
    )  # fmt: skip


class Unfreeze(Callback):
    """Trains more of the backbone from an epoch on.

    Args:
        at: epoch, counted from 1 -> ``trainable_from``, as the backbone takes it; null: all of it.
        freeze_batch_stats: whether what stays frozen keeps its batch statistics.
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


def _studies(loader: Any) -> int:
    return len(loader.sampler.rows)


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
