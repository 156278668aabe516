"""What ends a run with a reason: a loss that is not a number, too little memory; and where the time of a step goes."""

from __future__ import annotations

import importlib
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import Profiler, SimpleProfiler, XLAProfiler
from torch import Tensor

from xraylab.config.settings import Settings
from xraylab.data.batching import Batch
from xraylab.errors import UserError, listed
from xraylab.exchange import gather, largest

log = logging.getLogger(__name__)
TOO_LITTLE = "out of memory|ALLOC_FAILED|can't allocate memory|not enough memory"
REMEDIES = "Lower optimizer.lr, set gradient_clip=1.0 or precision=32, or look at the studies (python -m xraylab.check)."


class Diverged(UserError):
    """Training came to numbers that are not finite; going on would come to them again."""


class FiniteLoss(Callback):
    """Ends training at the first batch whose loss is NaN or infinite in any process, naming its step and studies.

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


class XLAReport(XLAProfiler):
    """Lightning's, which serves traces at a port, and the counts and times of compilation, execution and transfer in a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.dirpath, self.filename = folder, "xla"

    def summary(self) -> str:
        """What torch_xla counted."""
        return str(importlib.import_module("torch_xla.debug.metrics").metrics_report())


class StepProfiler(Profiler):
    """torch's profiler over some training steps: a table of what they spent time on, and a trace of them.

    Not Lightning's, whose second recording, of the next epoch, ends the process with a broken heap (2.6, torch 2.15).

    Args:
        folder: of ``fit-pytorch.txt``, and of ``fit-pytorch.trace.json`` for https://ui.perfetto.dev or chrome://tracing.
        skipped: steps before, in which buffers and algorithms are found.
        steps: that are recorded, with the waiting for data between them.
    """

    def __init__(self, folder: Path, skipped: int = 2, steps: int = 5) -> None:
        super().__init__(folder, "pytorch")
        self.skipped, self.steps = skipped, steps
        self._begun = 0
        self._recording: torch.profiler.profile | None = None
        self._open: dict[str, torch.profiler.record_function] = {}
        self._table = f"Nothing was recorded: no more than {skipped} steps were trained.\n"

    def start(self, action_name: str) -> None:
        if action_name == "run_training_batch":
            if self._begun == self.skipped:
                os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes of itself to the terminal
                self._recording = torch.profiler.profile()
                self._recording.start()
            elif self._begun == self.skipped + self.steps:
                self._end()
            self._begun += 1
        if self._recording is not None:
            self._open[action_name] = torch.profiler.record_function(action_name)
            self._open[action_name].__enter__()

    def stop(self, action_name: str) -> None:
        if (opened := self._open.pop(action_name, None)) is not None:
            opened.__exit__(None, None, None)

    def _end(self) -> None:
        if self._recording is None:
            return
        recording, self._recording = self._recording, None
        recording.stop()
        longest = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = recording.key_averages().table(longest, row_limit=50, max_name_column_width=80)
        done = min(self._begun - self.skipped, self.steps)
        self._table = f"{done} training steps, after {self.skipped}\n{table}\n"
        folder = Path(str(self.dirpath))
        folder.mkdir(parents=True, exist_ok=True)
        recording.export_chrome_trace(str(folder / self._prepare_filename(extension=".trace.json")))

    def summary(self) -> str:
        """The table, by what took longest."""
        self._end()
        return self._table


def memory_in_words(error: BaseException, settings: Settings) -> str | None:
    """Which settings to change, if an error is about too little memory."""
    text = f"{error} {error.__cause__ or ''}".strip()
    on_gpu = isinstance(error, torch.OutOfMemoryError) or re.search("cuda|cublas|cudnn", text, re.I) is not None
    of_reader = re.search(r"DataLoader worker.*(?:signal: Killed|Bus error)", text, re.S) is not None
    if not (isinstance(error, MemoryError) or of_reader or re.search(TOO_LITTLE, text, re.I)):
        return None
    b, a = settings.batch_size, settings.accumulate
    fewer = [f"batch_size={b // 2} accumulate={a * 2} (the same step in smaller parts)"] if b > 1 and b % 2 == 0 else []
    fewer += [f"batch_size=1 accumulate={a * b} (the same step in smaller parts)"] if b > 1 and b % 2 else []
    size = f"a smaller image.size (now {settings.image.size or 'as the images are'})"
    precision = ["precision=bf16"] if settings.precision == "32" else []
    first = (text.splitlines() or ["MemoryError"])[0].split(". ")[0][:200]
    where = "the memory, or what of it readers share (/dev/shm)," if of_reader else "the GPU's memory" if on_gpu else "the memory"
    readers = ["num_workers=0"] if of_reader else []
    less = ", ".join([*readers, *fewer, size, *precision])
    return f"{where} is too small: {first}. What needs less: {less}, or a smaller backbone. These belong to a new run."


def make_profiler(kind: str | None, directory: Path) -> Profiler | None:
    """Lightning's profiler of that kind, which writes to ``profile`` in the run directory."""
    if kind is None:
        return None
    folder = directory / "profile"
    if kind == "simple":
        return SimpleProfiler(folder, "simple", extended=True)
    if kind == "pytorch":
        return StepProfiler(folder)
    return XLAReport(folder)
