"""``history.csv`` and the log line of an epoch."""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from xraylab.data.batching import Batch
from xraylab.data.study_table import SYNTHETIC
from xraylab.system.files import write_text
from xraylab.system.progress import clock
from xraylab.training.distributed.collectives import gather, rank, summed
from xraylab.training.study_module import StudyModule

log = logging.getLogger(__name__)
FIRST_COLUMNS = ["epoch", "step", "lr", "train/loss", "valid/loss"]
LAST_COLUMNS = ["seconds", "studies_per_s", "images_per_s"]


class History(Callback):
    """Callback that writes ``history.csv``, logs one line an epoch, and sends the same numbers to the loggers.

    Args:
        path: of history.csv; rows of earlier epochs of a resumed run are kept.
        headline: the metric in the line of an epoch.
    """

    def __init__(self, path: Path, headline: str) -> None:
        self.path, self.headline = path, headline
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
        """Take the rows and the place in the epoch back."""
        self.rows = list(state["rows"])
        self._units, self._images = (state["units"], state["images"]) if rank() == 0 else (0, 0)
        self._start = time.monotonic() - state["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch = trainer.current_epoch

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
        counts = {"studies": units, "images": images} if pl_module.unit == "study" else {"images": images}
        row: dict[str, Any] = {
            "epoch": self._epoch,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/loss": total / max(n, 1),
            **metrics,
            "seconds": round(seconds, 3),
            **{f"{unit}_per_s": round(count / max(self._trained - self._start, 1e-9), 3) for unit, count in counts.items()},
            **pl_module.loss.state(pl_module.labels),
        }
        self.rows.append(row)
        if not trainer.is_global_zero:
            return
        self._write(pl_module)
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

    def _write(self, module: StudyModule) -> None:
        """Write the rows: the AUROC of the labels first; of synthetic data each is marked by a last column, ``data``."""
        first = FIRST_COLUMNS + [f"valid/{name}/auroc" for name in (*module.labels, "macro")] + LAST_COLUMNS
        columns = first + sorted({k for row in self.rows for k in row} - set(first))
        mark = {"data": SYNTHETIC} if module.data == SYNTHETIC else {}
        text = io.StringIO()
        writer = csv.DictWriter(text, [*columns, *mark], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: "" if _nan(v) else v for k, v in {**row, **mark}.items()} for row in self.rows)
        write_text(self.path, text.getvalue())


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
