"""Progress of an epoch in studies, and the running loss beside it."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ProgressBar
from tqdm import tqdm

from xraylab.data.batching import Batch
from xraylab.training.distributed.collectives import rank, summed
from xraylab.training.study_module import StudyModule


class RunningLoss(Callback):
    """Callback that sends the running training loss and the learning rates to loggers and the bar, every ``every`` steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.value = math.nan
        self._before = (0.0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The sums of the last point, from which the next one counts."""
        return {"before": self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the sums back."""
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
    """Progress bar in studies (or images), with rate, ETA and running loss; silent where standard error is not a terminal."""

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


def _studies(loader: Any) -> int:
    return len(loader.sampler.rows)
