"""Checkpoint files: written as a whole or not at all, within an epoch by a thread while training goes on."""

from __future__ import annotations

import io
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from xraylab.system.files import write_bytes

LATER = {"later": True}  # as storage_options of Trainer.save_checkpoint: written while training goes on


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's own goes by way of a file in the system's folder for temporary files, which may be on another disk.

    What is written later is copied first, so that it is the state of its step; there is one such copy at most.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write it, or begin to.

        Raises:
            CannotWrite: this one, or the one before it, cannot be written.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        self.wait()
        self._writing = self._thread.submit(write_bytes, Path(path), content.getbuffer())
        if storage_options != LATER:
            self.wait()

    def wait(self) -> None:
        """Until what was begun is written.

        Raises:
            CannotWrite: it cannot be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def remove_checkpoint(self, path: Any) -> None:
        """After what was begun is written."""
        self.wait()
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        """Called by Lightning at the end of a fit, however it ends."""
        self.wait()
