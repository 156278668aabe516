"""What ends a run with a reason: a loss that is not a number, too little memory; and where the time of a step goes."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import Profiler, PyTorchProfiler, SimpleProfiler, XLAProfiler
from torch import Tensor

from xraylab.data.loading import Batch
from xraylab.errors import UserError, listed
from xraylab.exchange import gather, largest
from xraylab.settings import Settings

log = logging.getLogger(__name__)


class FiniteLoss(Callback):
    """Ends training at the first batch whose loss is NaN or infinite in any process, naming its step and studies.

    The number of that batch is kept on the device and looked at, in all processes, every ``every`` steps, before a checkpoint is
    written and before validation.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._batches: list[tuple[int, int, tuple[str, ...]]] = []  # step, epoch, ids since the last look
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

    def _look(self, pl_module: pl.LightningModule) -> None:
        if not self._batches:
            return
        first = int(self._first)
        ago = len(self._batches) - first + 1 if first else 0
        (earliest,) = largest(ago)  # all have as many batches, with parts of the same studies
        if earliest:
            step, epoch, own = self._batches[-earliest]
            ids = [i for of in gather(own if ago == earliest else ()) for i in of]
            raise UserError(
                f"the loss is not a finite number at step {step}, in epoch {epoch}, of the studies {listed(ids, 20)}: "
                "training has diverged, or something is wrong with those studies. Lower optimizer.lr, set gradient_clip=1.0 or "
                "precision=32, or look at them (python -m xraylab.check). No checkpoint was written since."
            )
        self._forget(pl_module)

    def _forget(self, pl_module: pl.LightningModule) -> None:
        self._batches.clear()
        self._seen = self._first = torch.zeros((), dtype=torch.int32, device=pl_module.device)


class XLAReport(XLAProfiler):
    """Lightning's, which serves traces at a port, and the counts and times of compilation, execution and transfer in a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.dirpath, self.filename = folder, "xla"

    def summary(self) -> str:
        """What torch_xla counted."""
        return str(importlib.import_module("torch_xla.debug.metrics").metrics_report())


def memory_in_words(error: BaseException, settings: Settings) -> str | None:
    """Which settings to change, if an error is about too little memory."""
    text = str(error)
    on_gpu = isinstance(error, torch.OutOfMemoryError)
    if not (on_gpu or isinstance(error, MemoryError) or "can't allocate memory" in text or "not enough memory" in text):
        return None
    b, a = settings.batch_size, settings.accumulate
    fewer = [f"batch_size={b // 2} accumulate={a * 2} (the same step in smaller parts)"] if b > 1 and b % 2 == 0 else []
    fewer += [f"batch_size=1 accumulate={a * b} (the same step in smaller parts)"] if b > 1 and b % 2 else []
    size = f"a smaller image.size (now {settings.image.size or 'as the images are'})"
    precision = ["precision=bf16"] if settings.precision == "32" else []
    first = (text.splitlines() or ["MemoryError"])[0].split(". ")[0][:200]
    where = "the GPU's memory" if on_gpu else "the memory"
    return (
        f"{where} is too small: {first}. What needs less: {', '.join([*fewer, size, *precision])}, or a smaller backbone. "
        "These belong to a new run."
    )


def make_profiler(kind: str | None, directory: Path) -> Profiler | None:
    """Lightning's profiler of that kind, which writes to ``profile`` in the run directory."""
    if kind is None:
        return None
    folder = directory / "profile"
    if kind == "simple":
        return SimpleProfiler(folder, "simple", extended=True)
    if kind == "pytorch":
        some = torch.profiler.schedule(
            wait=1, warmup=1, active=5, repeat=1
        )  # of training, and of validation; all would fill the disk
        return PyTorchProfiler(folder, "pytorch", row_limit=50, schedule=some, acc_events=True)
    return XLAReport(folder)
