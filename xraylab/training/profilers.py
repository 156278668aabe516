"""Profilers: where the time of a training step goes."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import torch
from pytorch_lightning.profilers import Profiler, SimpleProfiler, XLAProfiler


class XLAReport(XLAProfiler):
    """Lightning's XLA profiler: traces at a port, and in a file the counts and times of compilation, execution and transfer."""

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
